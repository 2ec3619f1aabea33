"""Write failures (full disk, quota, permissions): found in any error, told in one line."""

import contextlib
import errno
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from clip_jax.errors import UserError

ASIDE_PREFIX = ".clip_jax-part-"  # of files still being written

_FULL = "free some space"
_CLOSED = "give a folder that can be written"
# errno -> advice. `RLIMIT_FSIZE` gives EFBIG because Python ignores SIGXFSZ.
_ADVICE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
    errno.EROFS: _CLOSED,
}
_PERMISSION = (errno.EACCES, errno.EPERM)
_PATH = re.compile(r'"(/[^"]+)"')  # as tensorstore quotes it


def advice(error: OSError) -> str:
    """Returns "; " and advice on a full disk, a quota or a size limit; otherwise ""."""
    how = _ADVICE.get(error.errno or 0)
    return "" if how in (None, _CLOSED) else f"; {how}"


def unwritable(error: BaseException, folder: Path | None = None) -> UserError | None:
    """Returns a `UserError` with file, reason and advice if an error says that a disk is full, over
    a quota or limit, or not writable; otherwise None.

    Libraries wrap such errors in their own, so the whole chain of causes is searched. A permission
    error may be about reading; it counts inside `folder` only.
    """
    seen: BaseException | None = error
    while seen is not None:
        found = _found_in(seen, folder)
        if found is not None:
            path, number = found
            where, how = path or folder or "the output", _ADVICE.get(number, _CLOSED)
            return UserError(f"{where}: cannot be written ({os.strerror(number)}); {how}")
        seen = seen.__cause__ or seen.__context__
    return None


def _found_in(error: BaseException, folder: Path | None) -> tuple[str | None, int] | None:
    """Returns (path, errno) of one error, ignoring its causes."""
    if isinstance(error, OSError):
        path = None if error.filename is None else os.fspath(error.filename)
        if error.errno in _ADVICE:
            return _as_text(path), error.errno
        if error.errno in _PERMISSION and folder is not None and path is not None:
            is_inside = Path(_as_text(path) or "").absolute().is_relative_to(folder.absolute())
            return (_as_text(path), error.errno) if is_inside else None
    text = str(error)
    for number in (*_ADVICE, *(_PERMISSION if folder is not None else ())):
        if os.strerror(number) in text:
            paths = _PATH.findall(text)
            if number in _PERMISSION and not any(
                Path(path).is_relative_to(folder.absolute()) for path in paths if folder
            ):
                continue
            # orbax renames a checkpoint to its final name when it is complete.
            return (paths[0].partition(".orbax-checkpoint-tmp")[0] if paths else None), number
    return None


def _as_text(path: str | bytes | int | None) -> str | None:
    return os.fsdecode(path) if isinstance(path, str | bytes) else None


@contextlib.contextmanager
def writing(folder: Path, then: str = "") -> Iterator[None]:
    """Turns a disk error into a `UserError`; names `folder` if the error names no file, and
    appends `then` to the advice."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        told = unwritable(error, folder)
        if told is None:
            raise
        raise UserError(f"{told}{then}") from error


@contextlib.contextmanager
def telling(what: str) -> Iterator[None]:
    """Turns any OSError into a `UserError` that begins with `what`, such as "--output=x.json"."""
    try:
        yield
    except OSError as error:
        reason = f"cannot be written ({error.strerror or error}){advice(error)}"
        raise UserError(f"{what}: {reason}") from error


def aside_of(path: Path) -> Path:
    """Returns the temporary path of a file being written: in the same folder, a short name."""
    # The file's own name may already have the maximum length.
    number = zlib.crc32(os.fsencode(path.name))
    return path.with_name(f"{ASIDE_PREFIX}{os.getpid()}-{number:08x}")


def write_text(path: Path, text: str) -> None:
    """Writes a temporary file and renames it: a full disk or a kill leaves the old file or none.

    Raises OSError that names `path`.
    """
    aside = aside_of(path)
    try:
        # A path in the text may hold a lone surrogate (file names need not be UTF-8): becomes "?".
        aside.write_text(text, encoding="utf-8", errors="replace")
        os.replace(aside, path)
    except OSError as error:  # an error from write() names no file
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with contextlib.suppress(OSError):  # such as a folder that cannot be written
            aside.unlink(missing_ok=True)
