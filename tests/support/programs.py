"""Programs as a person starts them, in a process of their own."""

import os
import subprocess
import sys
from pathlib import Path

from places import REPOSITORY

Ended = subprocess.CompletedProcess[str]


def run_program(*arguments: object, cwd: Path = REPOSITORY, **environment: str) -> Ended:
    """`python -m` with these arguments; `environment` is added to that of the tests."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_mistake(ended: Ended, *parts: str) -> None:
    """Exit 2, and a last line that begins with "error:" and names what is wrong."""
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if "error:" in line]
    assert lines == ended.stderr.strip().splitlines()[-1:], ended.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
