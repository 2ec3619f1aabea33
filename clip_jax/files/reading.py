"""Whole reads of local files."""

import os

from clip_jax.errors import DecodeError


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Returns a file's bytes. Raises `DecodeError` if unreadable, as for any other bad image."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DecodeError(
            f"{path} cannot be read: {error.strerror or error}", "image_missing"
        ) from error
