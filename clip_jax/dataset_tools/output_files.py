"""Files that the commands write: checked before the work begins, and never half written."""

import contextlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from clip_jax.arguments import local_path
from clip_jax.errors import UserError
from clip_jax.files import disk
from clip_jax.files.disk import telling


def output_file(value: str | None, flag: str = "--output") -> Path | None:
    """The path of a file to write. Raises UserError where it cannot be one, or not be written."""
    if not value:
        return None
    path = local_path(value, flag)
    with telling(f"{flag}={path}"):
        is_none = _kind(path) == "folder" or _kind(path.absolute().parent) != "folder"
    if is_none:
        raise UserError(f"{flag}={path}: must be a file in a folder that exists")
    with telling(f"{flag}={path}"):
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
    with telling(f"--output={path}"):
        kind = _kind(path)
    if kind == "file":
        raise UserError(f"--output={path}: is a file; give a new folder")
    with telling(f"--output={path}"):
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
    with telling(f"--output={folder}"):
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
    aside = disk.aside_of(folder / "x")
    try:
        aside.write_bytes(b"")
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file aside and renames it. Raises UserError where it cannot be written."""
    with telling(str(path)):
        disk.write_text(path, text)
