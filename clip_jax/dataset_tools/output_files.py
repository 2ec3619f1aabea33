"""Files that the commands write: checked before the work begins, and never half written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError


def output_file(value: str | None, flag: str = "--output") -> Path | None:
    """The path of a file to write. Raises UserError where it cannot be one."""
    if not value:
        return None
    path = Path(value).expanduser()
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"{flag}={path}: must be a file in a folder that exists")
    return path


def output_folder(value: str | None, what: str) -> Path:
    """The path of a folder to write, which need not exist. Raises UserError where it is none."""
    if not value:
        raise UserError("--output: is missing; give a new folder")
    if "://" in value:
        raise UserError(
            f"--output={value}: is a URL; give a folder here and copy {what} afterwards"
        )
    path = Path(value).expanduser()
    if path.exists() and not path.is_dir():
        raise UserError(f"--output={path}: is a file; give a new folder")
    return path


def write_text(path: Path, text: str) -> None:
    """Aside and renamed, so that a kill leaves the old file or the new one. Raises UserError."""
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        try:
            # A path or key may hold a lone surrogate, which becomes "?".
            aside.write_text(text, encoding="utf-8", errors="replace")
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_json(path: Path, value: Any) -> None:
    """As `write_text`."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")
