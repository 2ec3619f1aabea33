"""Files that the commands write: checked before the work begins, and never half written."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_jax.arguments import local_path
from clip_jax.disk import advice
from clip_jax.errors import UserError

ASIDE_PREFIX = ".clip_jax-part-"  # of files that are not yet what they will be


def output_file(value: str | None, flag: str = "--output") -> Path | None:
    """The path of a file to write. Raises UserError where it cannot be one, or not be written."""
    if not value:
        return None
    path = local_path(value, flag)
    with _one_line(f"{flag}={path}"):
        is_none = _kind(path) == "folder" or _kind(path.absolute().parent) != "folder"
    if is_none:
        raise UserError(f"{flag}={path}: must be a file in a folder that exists")
    with _one_line(f"{flag}={path}"):
        _try(path.parent)
    return path


def output_folder(value: str | None, what: str) -> Path:
    """The path of a folder to write, which need not exist. Raises UserError where it is none, or
    cannot be written."""
    if not value:
        raise UserError("--output: is missing; give a new folder")
    if "://" in value:
        raise UserError(
            f"--output={value}: is a URL; give a folder here and copy {what} afterwards"
        )
    path = local_path(value, "--output")
    with _one_line(f"--output={path}"):
        kind = _kind(path)
    if kind == "file":
        raise UserError(f"--output={path}: is a file; give a new folder")
    with _one_line(f"--output={path}"):
        missing = [folder for folder in (path, *path.parents) if _kind(folder) is None]
        made: list[Path] = []
        try:
            for folder in reversed(missing):
                folder.mkdir(exist_ok=True)
                made.append(folder)
            _try(path)
        finally:  # a mistake found later leaves nothing behind
            with contextlib.suppress(OSError):  # another run has begun to write there
                for folder in reversed(made):
                    folder.rmdir()
    return path


def names_in(folder: Path) -> list[str]:
    """What a folder of --output has, in order; [] where it is not there. Raises UserError."""
    with _one_line(f"--output={folder}"):
        return sorted(os.listdir(folder)) if _kind(folder) else []


def _kind(path: Path) -> str | None:
    """ "folder", "file", or None where nothing is there. Raises OSError where nothing can be: the
    name is too long, or a folder above is none or is closed."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    return "folder" if stat.S_ISDIR(mode) else "file"


def _try(folder: Path) -> None:
    """Raises OSError where no file can be made there: better now than after hours of work."""
    aside = _aside(folder)
    try:
        aside.write_bytes(b"")
    finally:
        aside.unlink(missing_ok=True)


def _aside(folder: Path) -> Path:
    # Without the name of the file, which may have as many letters as a name can.
    return folder / f"{ASIDE_PREFIX}{os.getpid()}"


@contextlib.contextmanager
def _one_line(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error}){advice(error)}"
        raise UserError(f"{what}: {reason}") from error


def write_text(path: Path, text: str) -> None:
    """Aside and renamed, so that a kill leaves the old file or the new one. Raises UserError."""
    aside = _aside(path.parent)
    with _one_line(str(path)):
        try:
            # A path or key may hold a lone surrogate, which becomes "?".
            aside.write_text(text, encoding="utf-8", errors="replace")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """As `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
