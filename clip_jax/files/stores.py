"""Files in object stores and on web servers, through fsspec, with retries, timeouts and a cache.

A request that fails or stalls is retried after a pause that doubles. When all attempts fail,
`Unavailable` is raised; sources then act on `RemoteOptions.on_failure`.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clip_jax.errors import UserError, first_line
from clip_jax.files.disk import advice
from clip_jax.files.options import RemoteOptions
from clip_jax.files.telemetry import telemetry

logger = logging.getLogger(__name__)
T = TypeVar("T")

_PIECE_BYTES = 8 << 20  # of a download; the timeout applies to each
_LONGEST_PAUSE_SECONDS = 60.0
_ABANDONED_SECONDS = 3600.0  # since the last piece of a download
_EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
_CREDENTIALS = {
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS or run `gcloud auth application-default login`",
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "hf": "set HF_TOKEN or run `hf auth login`",
}
# These are matched by name because the packages that define them may not be installed.
_REFUSED = (
    "PermissionError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "TokenRetrievalError",
    "DefaultCredentialsError",
    "RefreshError",
    "GatedRepoError",
)
# Fields by which different stores show that a file was rewritten; the most reliable first.
_TAGS = ("etag", "ETag", "md5Hash", "blob_id", "mtime", "LastModified", "Last-Modified", "created")
# Client libraries raise these for a malformed URL; a retry would not help.
_MALFORMED = ("HfUriError", "HFValidationError", "InvalidURL")


class Unavailable(OSError):
    """A remote file that all attempts failed to get; the message names the file and the reason."""


@dataclass(frozen=True)
class Stat:
    """Size in bytes of one file, and a tag (or time) that changes when the file is rewritten."""

    size: int
    tag: str


def cache_folder() -> Path:
    """Returns $CLIP_JAX_CACHE, or ~/.cache/clip_jax."""
    return Path(os.environ.get("CLIP_JAX_CACHE") or "~/.cache/clip_jax").expanduser()


def unwritable(path: Path, error: OSError) -> UserError:
    """Returns a one-line error with advice for a file of ours that cannot be written."""
    how = advice(error)
    if path.is_relative_to(cache_folder()):
        how += f"{', or' if how else ';'} set CLIP_JAX_CACHE to a folder where we may write"
    return UserError(f"{path} cannot be written: {error.strerror or error}{how}")


def find(pattern: str, remote: RemoteOptions) -> list[str]:
    """Returns the sorted URLs that a glob matches. Raises UserError if the store fails."""
    protocol = pattern.partition("://")[0]
    filesystem, path = _filesystem(pattern)
    try:
        names = _retried(lambda: filesystem.glob(path), pattern, remote)
    except Unavailable as error:
        raise UserError(str(error)) from error
    full = (name if "://" in name else f"{protocol}://{name}" for name in names)
    return sorted(full)


def stat(url: str, remote: RemoteOptions) -> Stat:
    """Returns the `Stat` of a remote file. Raises Unavailable, also if it does not exist."""
    filesystem, path = _filesystem(url)
    info = _retried(lambda: filesystem.info(path), url, remote)
    tags = (info.get(name) for name in _TAGS)
    tag = next((str(tag) for tag in tags if tag), "")
    if info.get("size") is None:
        raise Unavailable(f"{url}: its store does not tell how large it is")
    return Stat(int(info["size"]), tag)


def read_range(url: str, start: int, end: int, remote: RemoteOptions) -> bytes:
    """Returns the bytes in [start, end). Raises Unavailable."""
    filesystem, path = _filesystem(url)

    def read() -> bytes:
        data = filesystem.cat_file(path, start=start, end=end)
        if len(data) != end - start:
            raise OSError(f"{len(data)} bytes came instead of {end - start}")
        return data

    data = _retried(read, url, remote)
    telemetry.add(bytes_fetched=len(data))
    return data


def read_bytes(url: str, remote: RemoteOptions) -> bytes:
    """Returns the whole file. Raises Unavailable."""
    filesystem, path = _filesystem(url)
    data = _retried(lambda: filesystem.cat_file(path), url, remote)
    telemetry.add(bytes_fetched=len(data))
    return data


def write_bytes(url: str, data: bytes, remote: RemoteOptions) -> None:
    """Writes or replaces a remote file. Raises Unavailable."""
    filesystem, path = _filesystem(url)
    _retried(lambda: filesystem.pipe_file(path, data), url, remote)


def fetch(url: str, remote: RemoteOptions, found: Stat | None = None) -> Path:
    """Returns a local copy, from the cache or downloaded now; the oldest copies are evicted.

    The copy may be evicted as soon as another file is fetched: open it at once (an open file
    stays), and call again if it is gone. Of several processes that ask for one file, one fetches.

    Raises Unavailable if the download fails or the file is larger than the whole cache, and
    UserError if the cache cannot be written.
    """
    found = found or stat(url, remote)
    limit = int(remote.cache_gib * 2**30)
    if found.size > limit:
        raise Unavailable(
            f"{url} has {found.size:,} bytes, more than the whole cache of {limit:,}"
            f" (remote.cache_gib={remote.cache_gib:g})"
        )
    name = hashlib.blake2b(f"{url}\n{found.tag}\n{found.size}".encode(), digest_size=16)
    folder = cache_folder() / "shards"
    target = folder / f"{name.hexdigest()}-{url.rpartition('/')[2].partition('?')[0][-80:]}"
    try:
        return _copied(url, found, target, folder / f"{name.hexdigest()}.lock", remote)
    except Unavailable:
        raise
    except OSError as error:
        raise unwritable(target, error) from error


def _copied(url: str, found: Stat, target: Path, lock: Path, remote: RemoteOptions) -> Path:
    """Returns `target`. Raises Unavailable, and OSError if the cache cannot be written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(lock):
        with contextlib.suppress(FileNotFoundError):  # other processes evict, too
            if target.stat().st_size == found.size:
                os.utime(target, ns=(time.time_ns(),) * 2)  # the default has tick resolution
                telemetry.add(cache_hits=1)
                return target
        telemetry.add(cache_misses=1)
        _make_room(target.parent, int(remote.cache_gib * 2**30) - found.size)
        part = target.with_suffix(f".part-{os.getpid()}")
        try:
            with open(part, "wb") as file:
                for start in range(0, found.size, _PIECE_BYTES):
                    end = min(start + _PIECE_BYTES, found.size)
                    file.write(read_range(url, start, end, remote))
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return target


def _make_room(folder: Path, limit: int) -> None:
    """Evicts the least recently used copies until at most `limit` bytes remain."""
    with _locked(folder / "room.lock"):
        files = []
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                if not entry.name.endswith(".lock"):
                    files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
        total = sum(size for _, size, _ in files)
        for modified, size, path in sorted(files):
            if total <= limit:
                return
            # Another process is writing it, unless it is old: then that process was killed.
            if ".part-" in path and time.time() - modified / 1e9 < _ABANDONED_SECONDS:
                continue
            Path(path).unlink(missing_ok=True)
            total -= size


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _filesystem(url: str) -> tuple[Any, str]:
    """Returns (filesystem, path in it). Raises UserError for an unknown protocol, or one whose
    package is not installed."""
    from fsspec import available_protocols
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        # Listings are not cached because shards come and go.
        return url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        how = f"pip install 'clip_jax[{extra}]'" if extra else str(error)
        raise UserError(f"{url}: {protocol}:// needs another package; {how}") from error
    except ValueError as error:
        known = ", ".join(sorted(available_protocols()))
        raise UserError(f"{url}: {protocol}:// is unknown; known are {known}") from error
    except Exception as error:  # each client library has its own
        _raise_if_refused(error, url)
        raise UserError(f"{url}: cannot be opened ({first_line(error, with_type=True)})") from error


def _retried(function: Callable[[], T], url: str, remote: RemoteOptions) -> T:
    """Returns the value of the first attempt that succeeds in time. Raises Unavailable, or
    UserError if the store denies access."""
    pause = remote.backoff_seconds
    for attempt in range(1, remote.attempts + 1):
        try:
            return in_time(function, remote.timeout_seconds)
        except Exception as error:  # each client library has its own
            if isinstance(error, FileNotFoundError) and _is_missing(error, url):
                raise Unavailable(f"{url}: no such file") from error
            _raise_if_refused(error, url)
            if _is_malformed(error):
                raise Unavailable(
                    f"{url}: is no address there ({first_line(error, with_type=True)})"
                ) from error
            reason = first_line(error.__cause__ or error, with_type=True)
        telemetry.add(store_retries=1)
        if attempt < remote.attempts:
            logger.info("%s: %s; attempt %d in %.1f s", url, reason, attempt + 1, pause)
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
    # The Hugging Face hub hides private repositories from anonymous users.
    hint = f"; if it is private, {_CREDENTIALS['hf']}" if url.startswith("hf://") else ""
    raise Unavailable(f"{url}: cannot be read after {remote.attempts} attempts ({reason}){hint}")


def _is_missing(error: FileNotFoundError, url: str) -> bool:
    """Returns whether the file really does not exist.

    fsspec's HTTP raises FileNotFoundError for any failure to get a file's size; the error's cause
    has the real status.
    """
    if not url.partition("://")[0].endswith(("http", "https")) or error.__cause__ is None:
        return True
    return getattr(error.__cause__, "status", None) in (404, 410)


def _is_malformed(error: Exception) -> bool:
    is_plain = type(error) is ValueError  # from a library's own checks
    return is_plain or any(kind.__name__ in _MALFORMED for kind in type(error).__mro__)


def in_time(function: Callable[[], T], seconds: float) -> T:
    """Returns the function's value. Raises TimeoutError if it takes longer; a call that hangs is
    abandoned in its daemon thread."""
    results: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()

    def call() -> None:
        try:
            results.put((True, function()))
        except BaseException as error:
            results.put((False, error))

    threading.Thread(target=call, name="store", daemon=True).start()
    try:
        succeeded, value = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"nothing came for {seconds:g} s") from None
    if not succeeded:
        raise value
    return value


def _raise_if_refused(error: Exception, url: str) -> None:
    if not any(kind.__name__ in _REFUSED for kind in type(error).__mro__):
        return
    protocol = {"gcs": "gs", "s3a": "s3"}.get(url.partition("://")[0], url.partition("://")[0])
    how = _CREDENTIALS.get(protocol, "check what the store wants")
    raise UserError(
        f"{url}: the store refuses us ({first_line(error, with_type=True)}); {how}"
    ) from error
