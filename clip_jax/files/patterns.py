"""Expansion of file patterns (globs, braces, comma lists), local or remote."""

import errno
import glob
import os
import re
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.files.options import RemoteOptions


def is_remote(path: str) -> bool:
    """Returns whether a path is a remote URL (`gs://`, `s3://`, …); file:// is not."""
    return "://" in path and not path.startswith("file://")


def is_pattern(path: str) -> bool:
    """Returns whether a path has signs of a glob, a brace pattern or a comma list."""
    return any(sign in path for sign in "*?[{,")


def expand_paths(
    pattern: str,
    ending: str = ".tar",
    remote: RemoteOptions = RemoteOptions(),  # noqa: B008 (frozen)
) -> list[str]:
    """Returns the files that a file name, folder, glob, brace pattern `{00000..00006}` or comma
    list means.

    In a folder, only files with `ending` count. Each part of a comma list has its own scheme
    (`gs://`) or `~`. Remote files given by name are not checked for existence.

    Raises UserError if any part names no file, or a folder cannot be read.
    """
    pattern = _local_name(pattern)
    paths: list[str] = []
    # An existing file wins over its interpretation as a pattern.
    parts = [pattern] if os.path.exists(pattern) else _split_commas(pattern)
    for part in map(_local_name, parts):
        names = [part] if os.path.exists(part) else _expand_braces(part)
        for name in map(_local_name, names):
            found = _remote(name, ending, remote) if is_remote(name) else _local(name, ending)
            if os.path.islink(name) and not os.path.exists(name):
                raise UserError(f"data path {name} {what_is_wrong(name)}; give a {ending} file")
            if not found:
                raise UserError(
                    f"data path {name}: no {ending.lstrip('.')} file there; give a {ending} file,"
                    " a folder of them, a glob, a brace pattern such as"
                    f" {{00000..00006}}{ending} or a comma list"
                )
            paths.extend(found)
    if not paths:
        raise UserError(f"data path {pattern!r} names no {ending} file")
    return paths


def what_is_wrong(path: str) -> str:
    """Returns the end of a sentence that says why nothing can be read at `path`."""
    try:
        os.stat(path)
    except PermissionError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:  # no name that a file could have
        return "does not exist"
    except OSError as error:
        if os.path.islink(path):
            target = os.readlink(path)
            if error.errno != errno.ELOOP:
                return f"is a link to {target}, which does not exist"
            here = os.path.abspath(path)
            if os.path.normpath(os.path.join(os.path.dirname(here), target)) == here:
                return "is a link to itself"
            return f"is a link to {target}, which leads back to it or into a loop of links"
        return "does not exist"
    return "cannot be read"


def _local_name(name: str) -> str:
    """Returns a name without file:// and with ~ expanded, unless a file has the name as it is."""
    return name if os.path.exists(name) else os.path.expanduser(name.removeprefix("file://"))


def _local(name: str, ending: str) -> list[str]:
    if os.path.isdir(name):
        try:
            # A search for ".tar" anywhere would also find indexes and partial downloads.
            return sorted(
                str(Path(name, file)) for file in os.listdir(name) if has_ending(file, ending)
            )
        except OSError as error:
            raise UserError(f"data path {name} cannot be read: {error.strerror}") from error
    return [name] if os.path.isfile(name) else sorted(glob.glob(name))


def _remote(name: str, ending: str, remote: RemoteOptions) -> list[str]:
    from clip_jax.files import stores

    if any(sign in name for sign in "*?["):
        return stores.find(name, remote)
    if has_ending(name.rpartition("/")[2].partition("?")[0], ending):
        return [name]
    return stores.find(f"{name.rstrip('/')}/*{ending}", remote)


def has_ending(name: str, ending: str) -> bool:
    """Returns whether a file name has this ending, ignoring case.

    TFDS appends a shard number to the ending: train.array_record-00000-of-00008.
    """
    found = re.search(rf"{re.escape(ending)}(-\d+-of-\d+)?\Z", name, re.IGNORECASE)
    return found is not None


def _split_commas(pattern: str) -> list[str]:
    """Splits at the commas outside braces."""
    return [part.strip() for part in re.split(r",(?![^{]*\})", pattern) if part.strip()]


def _expand_braces(pattern: str) -> list[str]:
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if span:
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [f"{n:0{width}d}" for n in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = match[1].split(",")
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [name for choice in choices for name in _expand_braces(f"{head}{choice}{tail}")]
