"""Freed memory stays: allocating again and again costs no page faults."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys, threading
if sys.argv[1] == "keep":
    from clip_jax.hosts.memory import keep_freed_memory
    if not keep_freed_memory():
        print("unsupported")
        raise SystemExit
import numpy as np

def work():
    for turn in range(13):
        if turn == 3:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(100_000_000, np.uint8)  # above every threshold at which malloc would keep it
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=work)  # as XLA allocates: not on the main thread
thread.start()
thread.join()
"""


def page_faults(mode: str) -> int:
    command = [sys.executable, "-c", CODE, mode]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if output == "unsupported":
        pytest.skip("this C library has no mallopt")
    return int(output)


def test_page_faults_go_away() -> None:
    without, kept = page_faults("leave"), page_faults("keep")
    assert kept < 100
    assert without > 10 * kept + 1000
