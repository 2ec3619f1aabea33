"""The cache of a process: bounded, each value made once, and not shared with its children."""

import multiprocessing
import os
import pickle
import threading

import pytest

from clip_jax.data.process_cache import ProcessCache


def test_the_last_are_kept_within_the_limit_and_made_once() -> None:
    cache, made = ProcessCache(10, len), []

    def get(key: str, size: int = 4) -> str:
        return cache.get(key, lambda: made.append(key) or key.upper() * size)[0]

    assert [get("a"), get("b"), get("a"), get("c"), get("a"), get("b")] == list("ABACAB")
    assert made == ["a", "b", "c", "b"]
    assert get("l", 100) == "L"
    assert (get("l", 100), made.count("l")) == ("L", 1)

    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        cache.get("x", fail)
    assert get("x") == "X"
    started, results = threading.Barrier(4), []

    def race() -> None:
        started.wait()
        results.append(get("r"))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == ["R"] * 4
    assert made.count("r") == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")
def test_a_copy_and_a_forked_child_make_their_own() -> None:
    cache = ProcessCache(2)
    assert cache.get("a", os.getpid) == os.getpid()
    assert pickle.loads(pickle.dumps(cache)).get("a", lambda: 7) == 7
    with cache._lock, multiprocessing.get_context("fork").Pool(1, _remember, (cache,)) as pool:
        child, found = pool.apply_async(_look).get(timeout=60)
    assert found == child != os.getpid()


def _remember(cache: ProcessCache) -> None:
    global _cache
    _cache = cache


def _look() -> tuple[int, int]:
    return os.getpid(), _cache.get("a", os.getpid)
