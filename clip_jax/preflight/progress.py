"""Progress line on stderr during long work."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

LINE_SECONDS = 15  # between lines if none can be overwritten, as in a log file


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Shows `what` and the elapsed time until the block ends."""
    overwrites, begun, done = sys.stderr.isatty(), time.perf_counter(), threading.Event()

    def say(end: str) -> None:
        text = f"{what} … {time.perf_counter() - begun:.0f} s"
        print(f"\r{text}" if overwrites else text, end=end, file=sys.stderr, flush=True)

    def tick() -> None:
        while not done.wait(1 if overwrites else LINE_SECONDS):
            say("" if overwrites else "\n")

    say("" if overwrites else "\n")
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        say("\n")
