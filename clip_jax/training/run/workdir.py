"""Folder of a run: its creation, its lock, and its cache of compiled programs."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import jax

from clip_jax.errors import UserError


def make_workdir(workdir: Path) -> Path:
    """Creates the folder. Raises `UserError` if it cannot be created or written."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--workdir={workdir}: cannot be made ({reason})") from error
    if not os.access(workdir, os.W_OK):
        raise UserError(f"--workdir={workdir}: cannot be written")
    return workdir.absolute()


@contextlib.contextmanager
def only_trainer(workdir: Path) -> Iterator[None]:
    """Holds the folder's lock on process 0. Raises `UserError` if another trainer has it.

    The kernel releases it when the process ends, however it ends.
    """
    if jax.process_index() != 0:
        yield
        return
    with open(workdir / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"--workdir={workdir}: another trainer is at work in it") from error
        yield


def enable_compilation_cache(workdir: Path) -> None:
    """Caches compiled programs in the workdir, unless the user has configured another cache.

    With several hosts, only process 0 writes; all read.
    """
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))
