"""Freed memory stays with the process: what a training step on a CPU otherwise pays for again."""

import ctypes

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Tells glibc to hold on to what is freed; call it before jax is imported. True if it took.

    XLA's CPU client allocates the temporaries of a step anew each time, hundreds of megabytes that
    the kernel hands out page by page, zeroed: for the quickstart's step 21,000 page faults and a
    fifth of its processor time. One arena, because only the main one can grow without mmap. On
    other C libraries this does nothing.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # -1 is the largest size there is: the parameter is an int, the threshold that it sets unsigned.
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1))
    return all(mallopt(name, value) == 1 for name, value in settings)
