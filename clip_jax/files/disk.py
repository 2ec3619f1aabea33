"""Local files: read, and written aside and then renamed; failures to write in one line."""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

from clip_jax.errors import DecodeError, UserError

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


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Returns a file's bytes. Raises `DecodeError` if unreadable, as for any other bad image."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror or error}"
        raise DecodeError(reason, "image_missing") from error


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
    if isinstance(error, OSError) and error.errno in (*_ADVICE, *_PERMISSION):
        numbers, named = [error.errno], [error.filename]
        paths = [os.fsdecode(name) for name in named if isinstance(name, str | bytes)]
    else:
        text = str(error)
        numbers = [number for number in (*_ADVICE, *_PERMISSION) if os.strerror(number) in text]
        # orbax renames a checkpoint to its final name when it is complete.
        paths = [path.partition(".orbax-checkpoint-tmp")[0] for path in _PATH.findall(text)]
    for number in numbers:
        is_inside = folder is not None and any(
            Path(path).absolute().is_relative_to(folder.absolute()) for path in paths
        )
        if number in _ADVICE or is_inside:
            return (paths[0] if paths else None), number
    return None


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
    return path.with_name(f"{ASIDE_PREFIX}{os.getpid()}-{threading.get_native_id()}-{number:08x}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file, which takes the place of `path` at the end: a full disk
    or a kill leaves the old file or none.

    Raises OSError that names `path`.
    """
    aside = aside_of(path)
    try:
        yield aside
        os.replace(aside, path)
    except OSError as error:
        if error.errno is None:  # not of the disk, such as `stores.Unavailable`
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # write() names no file
    finally:
        with contextlib.suppress(OSError):  # such as a folder that cannot be written
            aside.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yields a new folder, which takes the place of `folder` at the end: no reader sees a part."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    before = aside.with_name(f"{aside.name}-before")
    try:
        yield aside
        aside.chmod(0o755)
        if folder.exists():
            os.replace(folder, before)
        os.replace(aside, folder)
    finally:
        if before.exists() and not folder.exists():
            os.replace(before, folder)  # the new one did not get its place
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a file by `replacing`. Raises OSError that names `path`."""
    # A path in the text may hold a lone surrogate (file names need not be UTF-8): becomes "?".
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="replace")
