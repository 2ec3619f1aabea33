"""Programs as a person starts them, in a process of their own, which has jax imported already."""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from places import REPOSITORY

Ended = subprocess.CompletedProcess[str]


def run_program(*arguments: object, cwd: Path = REPOSITORY, **environment: str) -> Ended:
    """`python -m` with these arguments; `environment` is added to that of the tests."""
    return run_python(["-m", *map(str, arguments)], cwd, environment)


def run_python(words: Sequence[str], cwd: Path, environment: dict[str, str]) -> Ended:
    """`python` with these words; variables that jax reads when it is imported have no effect."""
    context = multiprocessing.get_context("forkserver")
    # None of these modules defines a flag.
    context.set_forkserver_preload(["clip_jax.training.run.loop", "clip_jax.loading"])
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder, "out"), Path(folder, "err")
        every = dict(os.environ) | environment
        process = context.Process(target=_run, args=(list(words), cwd, every, logs))
        process.start()
        process.join(300)
        process.kill()
        process.join()
        said = (log.read_text(encoding="utf-8", errors="replace") for log in logs)
        return Ended(["python", *words], process.exitcode or 0, *said)


def _run(words: list[str], cwd: Path, environment: dict[str, str], logs: tuple[Path, ...]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for stream, log in enumerate(logs, 1):
        with log.open("wb") as file:
            os.dup2(file.fileno(), stream)
    sys.path[:0] = ["", *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = words[1:] if words[0] == "-m" else words
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(words[0], run_name="__main__")
    finally:
        atexit._run_exitfuncs()


def assert_mistake(ended: Ended, *parts: str) -> None:
    """Exit 2, and a last line that begins with "error:" and names what is wrong."""
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    lines = [line for line in ended.stderr.splitlines() if "error:" in line]
    assert lines == ended.stderr.strip().splitlines()[-1:], ended.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
