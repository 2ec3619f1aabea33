"""Output files of the commands, checked before the work begins and written atomically."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from clip_jax.arguments import local_path
from clip_jax.errors import UserError
from clip_jax.files import disk
from clip_jax.files.disk import telling


def output_file(value: str | None, flag: str = "--output") -> Path | None:
    """The path of a file to write. Raises UserError if it is no file or cannot be written."""
    if not value:
        return None
    path = local_path(value, flag)
    with telling(f"{flag}={path}"):
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise UserError(f"{flag}={path}: must be a file in a folder that exists")
        _try(path.parent)
    return path


def output_folder(value: str | None) -> Path:
    """The path of a folder to write, which need not exist. Raises UserError if it is no folder or
    cannot be written."""
    if not value:
        raise UserError("--output: is missing; give a new folder")
    path = local_path(value, "--output")
    with telling(f"--output={path}"):
        if path.is_file():
            raise UserError(f"--output={path}: is a file; give a new folder")
        missing = [folder for folder in (path, *path.parents) if not folder.exists()]
        made: list[Path] = []
        try:
            for folder in reversed(missing):
                folder.mkdir(exist_ok=True)
                made.append(folder)
            _try(path)
        finally:  # so that a later error leaves nothing behind
            with contextlib.suppress(OSError):  # another run may be writing there
                for folder in reversed(made):
                    folder.rmdir()
    return path


def names_in(folder: Path) -> list[str]:
    """Sorted names in a folder of --output; [] if it does not exist. Raises UserError."""
    with telling(f"--output={folder}"):
        return sorted(os.listdir(folder)) if folder.exists() else []


def _try(folder: Path) -> None:
    """Raises OSError if no file can be created there: better now than after hours of work."""
    aside = disk.aside_of(folder / "x")
    try:
        aside.write_bytes(b"")
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON by `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a temporary file and renames it. Raises UserError if it cannot be written."""
    with telling(str(path)):
        disk.write_text(path, text)
