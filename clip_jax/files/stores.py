"""Files in object stores and on web servers, through fsspec, with retries, timeouts and a cache.

A request that fails or stalls is retried after a pause that doubles. When all attempts fail,
`Unavailable` is raised; sources then act on `RemoteOptions.on_failure`.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clip_jax.errors import UserError, first_line
from clip_jax.files.disk import ASIDE_PREFIX, advice, replacing
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


@contextlib.contextmanager
def told(path: Path) -> Iterator[None]:
    """Turns an OSError of the disk into a one-line `UserError`, with advice about the cache."""
    try:
        yield
    except Unavailable:
        raise
    except OSError as error:
        how = advice(error)
        if path.is_relative_to(cache_folder()):
            how += f"{', or' if how else ';'} set CLIP_JAX_CACHE to a folder where we may write"
        raise UserError(f"{path} cannot be written: {error.strerror or error}{how}") from error


def find(pattern: str, remote: RemoteOptions) -> list[str]:
    """Returns the sorted URLs that a glob matches. Raises UserError if the store fails."""
    try:
        names = _asked(lambda store, path: store.glob(path), pattern, remote)
    except Unavailable as error:
        raise UserError(str(error)) from error
    protocol = pattern.partition("://")[0]
    return sorted(name if "://" in name else f"{protocol}://{name}" for name in names)


def tree(url: str, remote: RemoteOptions) -> dict[str, Stat]:
    """Returns relative name -> `Stat` of all files in a folder; {"": its `Stat`} of a file.

    Raises Unavailable, also if there is nothing.
    """
    if url.startswith("http"):  # a listing would read the whole file to search for links
        return {"": stat(url, remote)}
    found = _asked(lambda store, path: store.find(path, detail=True), url, remote)
    if not found:
        raise Unavailable(f"{url}: no such file or folder")
    root = _filesystem(url)[1].rstrip("/")
    return {name.removeprefix(root).lstrip("/"): _stat(name, x) for name, x in found.items()}


def stat(url: str, remote: RemoteOptions) -> Stat:
    """Returns the `Stat` of a remote file. Raises Unavailable, also if it does not exist."""
    return _stat(url, _asked(lambda store, path: store.info(path), url, remote))


def _stat(url: str, info: Mapping[str, Any]) -> Stat:
    tags = (info.get(name) for name in _TAGS)
    if info.get("size") is None:
        raise Unavailable(f"{url}: its store does not tell how large it is")
    return Stat(int(info["size"]), next((str(tag) for tag in tags if tag), ""))


def read_range(
    url: str, start: int, end: int, remote: RemoteOptions, whole: int | None = None
) -> bytes:
    """Returns the bytes in [start, end), or all `whole` bytes of the file if its server knows no
    ranges. Raises Unavailable."""

    def read(store: Any, path: str) -> bytes:
        data = store.cat_file(path, start=start, end=end)
        if len(data) not in (end - start, whole):
            raise OSError(f"{len(data)} bytes came instead of {end - start}")
        return data

    data = _asked(read, url, remote)
    telemetry.add(bytes_fetched=len(data))
    return data


def read_bytes(url: str, remote: RemoteOptions) -> bytes:
    """Returns the whole file. Raises Unavailable."""
    data = _asked(lambda store, path: store.cat_file(path), url, remote)
    telemetry.add(bytes_fetched=len(data))
    return data


def write_bytes(url: str, data: bytes, remote: RemoteOptions) -> None:
    """Writes or replaces a remote file. Raises Unavailable."""
    _asked(lambda store, path: store.pipe_file(path, data), url, remote)


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
    with told(target):
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{name.hexdigest()}.lock"):
            with contextlib.suppress(FileNotFoundError):  # other processes evict, too
                if target.stat().st_size == found.size:
                    os.utime(target, ns=(time.time_ns(),) * 2)  # the default has tick resolution
                    telemetry.add(cache_hits=1)
                    return target
            telemetry.add(cache_misses=1)
            _make_room(folder, limit - found.size)
            download(url, found, target, remote)
    return target


def download(
    url: str,
    found: Stat,
    target: Path,
    remote: RemoteOptions,
    progress: Callable[[int], object] | None = None,
) -> None:
    """Copies a remote file; `target` appears when it is complete. `progress` gets byte counts.

    Raises Unavailable, and OSError if `target` cannot be written.
    """
    with replacing(target) as aside, open(aside, "wb") as file:
        while (start := file.tell()) < found.size:
            end = min(start + _PIECE_BYTES, found.size)
            file.write(read_range(url, start, end, remote, None if start else found.size))
            if progress is not None:
                progress(file.tell() - start)


def _make_room(folder: Path, limit: int) -> None:
    """Evicts the least recently used copies until at most `limit` bytes remain."""
    with _locked(folder / "room.lock"):
        files = []
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                if not entry.name.endswith(".lock"):
                    files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.name))
        total = sum(size for _, size, _ in files)
        for modified, size, name in sorted(files):
            if total <= limit:
                return
            # Another process is writing it, unless it is old: then that process was killed.
            is_new = time.time() - modified / 1e9 < _ABANDONED_SECONDS
            if not (name.startswith(ASIDE_PREFIX) and is_new):
                (folder / name).unlink(missing_ok=True)
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


def _asked(ask: Callable[[Any, str], T], url: str, remote: RemoteOptions) -> T:
    """Returns the first answer of a store (filesystem, path in it) that comes in time. Raises
    Unavailable, or UserError if the store denies access."""
    store, path = _filesystem(url)
    pause = remote.backoff_seconds
    for attempt in range(1, remote.attempts + 1):
        try:
            return in_time(lambda: ask(store, path), remote.timeout_seconds)
        except Exception as error:  # each client library has its own
            if isinstance(error, FileNotFoundError) and _is_missing(error, url):
                raise Unavailable(f"{url}: no such file") from error
            _raise_if_refused(error, url)
            # A plain ValueError is from a library's own checks.
            names = [kind.__name__ for kind in type(error).__mro__]
            if type(error) is ValueError or any(name in _MALFORMED for name in names):
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


def in_background(function: Callable[[], T]) -> "Future[T]":
    """Returns a future of the value; unlike a pool's, its thread does not delay process exit."""
    future: Future[T] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, name="store", daemon=True).start()
    return future


def in_time(function: Callable[[], T], seconds: float) -> T:
    """Returns the function's value. Raises TimeoutError if it takes longer; a call that hangs is
    abandoned in its daemon thread."""
    future = in_background(function)
    if not wait([future], timeout=seconds).done:
        raise TimeoutError(f"nothing came for {seconds:g} s")
    return future.result()


def _raise_if_refused(error: Exception, url: str) -> None:
    if not any(kind.__name__ in _REFUSED for kind in type(error).__mro__):
        return
    protocol = {"gcs": "gs", "s3a": "s3"}.get(url.partition("://")[0], url.partition("://")[0])
    how = _CREDENTIALS.get(protocol, "check what the store wants")
    raise UserError(
        f"{url}: the store refuses us ({first_line(error, with_type=True)}); {how}"
    ) from error
