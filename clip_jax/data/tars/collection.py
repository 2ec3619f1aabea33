"""Indexes of many archives: found, checked against their archives, and built if missing."""

import contextlib
import logging
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.tars.build import NotATar, make_index
from clip_jax.data.tars.index import (
    ENDING,
    IndexHeader,
    cached_index,
    cached_indexes,
    content_digest,
    is_index_for,
    pack_index,
    read_header,
)
from clip_jax.errors import UserError
from clip_jax.files import stores
from clip_jax.files.disk import replacing
from clip_jax.files.options import RemoteOptions
from clip_jax.files.patterns import is_remote
from clip_jax.files.stores import Stat, Unavailable
from clip_jax.hosts.children import end_with_parent

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # archives done, total

_STORE_THREADS = 16
_WORTH_PROCESSES_BYTES = 4 << 30  # of archives to index; below this, starting processes costs more


@dataclass(frozen=True)
class Shard:
    """An archive with its index."""

    path: str
    header: IndexHeader
    index: Path
    table_start: int


@dataclass
class IndexSummary:
    """Outcome of `build_indexes`."""

    shards: list[Shard] = field(default_factory=list)  # the readable archives, in order
    built: int = 0
    beside: int = 0  # indexes copied from the cache to beside their archives
    failed: dict[str, str] = field(default_factory=dict)  # path -> why there is no index


def build_indexes(
    paths: Sequence[str],
    *,
    workers: int = 1,
    beside: bool = False,
    rebuild: bool = False,
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> IndexSummary:
    """Finds the index of each archive, and builds those that are missing or stale.

    Args:
      workers: processes that read local archives.
      beside: writes indexes beside their archives instead of into the cache, and copies cached
        ones there.
      options: an index is valid for one choice of caption columns.
      progress: called after each archive that had to be read.

    Raises:
      UserError: a folder cannot be written.
    """
    remote = options.remote
    summary = IndexSummary()
    found: dict[int, Shard] = {}
    missing: dict[int, tuple[str, Stat, Path]] = {}  # archive, its stat, the file to write
    for number, (path, stat) in enumerate(zip(paths, _stats(paths, remote), strict=True)):
        if isinstance(stat, str):
            summary.failed[path] = stat
            continue
        shard, is_stale = _existing(path, stat, options)
        if is_stale:
            logger.warning(
                "%s: its index is older than the archive or of another one; made anew", path
            )
        if shard is None or rebuild:
            is_cached = is_remote(path) or not beside
            target = cached_index(path, options) if is_cached else Path(path + ENDING)
            missing[number] = (path, stat, target)
        else:
            found[number] = shard
    if beside:
        _copy_beside(found, remote, summary)
    made = _make(missing, options, beside, workers)
    for done, (number, problem) in enumerate(made, start=1):
        path, _, target = missing[number]
        outcome = problem or _opened(path, target)
        if isinstance(outcome, Shard):
            found[number] = outcome
            summary.built += 1
        else:
            summary.failed[path] = outcome
        if progress is not None:
            progress(done, len(missing))
    summary.shards = [found[number] for number in sorted(found)]
    return summary


def _stats(paths: Sequence[str], remote: RemoteOptions) -> Iterable[Stat | str]:
    """Returns the `Stat` of each archive, or why it cannot be read."""

    def one(path: str) -> Stat | str:
        try:
            if is_remote(path):
                return stores.stat(path, remote)
            status = os.stat(path)
            return Stat(status.st_size, str(status.st_mtime_ns))
        except Unavailable as error:
            return str(error)
        except OSError as error:
            return f"{path} cannot be read: {error.strerror or error}"

    if len(paths) == 1 or not any(map(is_remote, paths)):
        return map(one, paths)
    with ThreadPoolExecutor(_STORE_THREADS) as pool:
        return list(pool.map(one, paths))


def _existing(path: str, stat: Stat, options: SourceOptions) -> tuple[Shard | None, bool]:
    """Returns (the archive with its index or None, whether a stale index was found)."""
    is_stale = False
    beside = () if is_remote(path) else (Path(path + ENDING),)
    for index in (*beside, *cached_indexes(path, options)):
        found = read_header(index)
        if found is None or not is_index_for(found[0], options):
            continue
        if _is_of(found[0], stat, partial(_read_local, path) if index in beside else None):
            return Shard(path, found[0], index, found[1]), False
        is_stale = True
    return None, is_stale


def _is_of(
    header: IndexHeader, stat: Stat, read: Callable[[int, int], bytes] | None = None
) -> bool:
    """Returns whether an index is of an archive with this size and tag, or of a copy of it, which
    `read` reads."""
    # An older time proves nothing, because mv and cp -p keep it.
    if header.size != stat.size or header.tag == stat.tag:
        return header.size == stat.size
    return read is not None and content_digest(stat.size, read) == header.content


def _read_local(path: str, start: int, end: int) -> bytes:
    """Returns the bytes in [start, end), or none, which no index matches, of an unreadable file."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        return os.pread(file.fileno(), end - start, start)
    return b""


def _make(
    jobs: Mapping[int, tuple[str, Stat, Path]],
    options: SourceOptions,
    beside: bool,
    workers: int,
) -> Iterator[tuple[int, str | None]]:
    """Yields (number, problem if there is one) as each is done."""
    here = {n: (*job, options) for n, job in jobs.items() if not is_remote(job[0])}
    size = sum(stat.size for _, stat, _, _ in here.values())
    if min(workers, len(here)) > 1 and size >= _WORTH_PROCESSES_BYTES:
        # Forking a process that has threads, such as jax's, can hang.
        context = multiprocessing.get_context("spawn")
        processes = ProcessPoolExecutor(min(workers, len(here)), context, _start_process)
        yield from _pooled(processes, index_file, here)
    else:
        yield from ((number, index_file(*job)) for number, job in here.items())
    elsewhere = {n: (*job, options, beside) for n, job in jobs.items() if n not in here}
    if len(elsewhere) == 1:  # no pool: its threads would delay the exit of the process
        yield from ((number, _index_remote(*job)) for number, job in elsewhere.items())
    else:
        yield from _pooled(ThreadPoolExecutor(_STORE_THREADS), _index_remote, elsewhere)


def _start_process() -> None:
    # Ctrl-C reaches all processes of the terminal; only the main one reports it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def _pooled(
    pool: Executor, function: Callable[..., str | None], jobs: Mapping[int, tuple[Any, ...]]
) -> Iterator[tuple[int, str | None]]:
    try:
        futures = {pool.submit(function, *job): number for number, job in jobs.items()}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a process that makes indexes ended by itself; run again with fewer workers if memory"
            " is short, and in a script of your own put what it does under"
            " `if __name__ == '__main__':`"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _opened(path: str, index: Path) -> Shard | str:
    found = read_header(index)
    if found is None:
        return f"{path}: its index {index} vanished"
    return Shard(path, found[0], index, found[1])


def index_file(path: str, stat: Stat, target: Path, options: SourceOptions) -> str | None:
    """Writes the index of a local archive to `target`; returns None, or the problem.

    Raises UserError if `target` cannot be written.
    """
    try:
        data = make_index(path, options, stat.tag)
    except NotATar as error:
        return f"{path} is not an uncompressed tar file: {error}"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    _write(target, data)
    return None


def _write(target: Path, data: bytes) -> None:
    with stores.told(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as aside:
            aside.write_bytes(data)


def _copy_beside(found: dict[int, Shard], remote: RemoteOptions, summary: IndexSummary) -> None:
    """Copies cached indexes beside their archives, and updates `found`."""
    with ThreadPoolExecutor(_STORE_THREADS) as pool:
        copied = list(pool.map(lambda shard: _beside(shard, remote), found.values()))
    for (number, shard), outcome in zip(list(found.items()), copied, strict=True):
        if isinstance(outcome, Shard):
            found[number] = outcome
            summary.beside += outcome is not shard
        else:
            del found[number]
            summary.failed[shard.path] = outcome


def _beside(shard: Shard, remote: RemoteOptions) -> Shard | str:
    """Returns the archive with its copied index, or the problem; `shard` if it is there already."""
    beside = shard.path + ENDING
    try:
        if is_remote(shard.path):
            data = shard.index.read_bytes()
            if _stored_index(shard.path, remote) == data:
                return shard
            stores.write_bytes(beside, data, remote)
            return replace(shard)
        tag = str(os.stat(shard.path).st_mtime_ns)
        if shard.index == Path(beside) and shard.header.tag == tag:
            return shard
        data = shard.index.read_bytes()
        # An index copied with its archive gets the copy's time, to save comparing it again.
        _write(Path(beside), pack_index(replace(shard.header, tag=tag), data[shard.table_start :]))
        return _opened(shard.path, Path(beside))
    except OSError as error:
        return str(error)


def _index_remote(
    url: str, stat: Stat, target: Path, options: SourceOptions, beside: bool
) -> str | None:
    """Does what `index_file` does, for a remote archive; prefers an index in its store."""
    remote = options.remote
    try:
        data = b"" if beside else _stored_index(url, remote)
        found = read_header(data)
        if found is not None and is_index_for(found[0], options):
            header, start = found
            if _is_of(header, stat, partial(stores.read_range, url, remote=remote)):
                _write(target, pack_index(replace(header, tag=stat.tag), data[start:]))
                return None
        copy = str(stores.fetch(url, remote, stat))
        problem = index_file(copy, stat, target, options)
        if problem is not None:
            return problem.replace(copy, url)
        if beside:
            stores.write_bytes(url + ENDING, target.read_bytes(), remote)
        return None
    except Unavailable as error:
        return str(error)


def _stored_index(url: str, remote: RemoteOptions) -> bytes:
    """Returns the index beside a remote archive; b"" if there is none, as is usual."""
    with contextlib.suppress(Unavailable):
        return stores.read_bytes(url + ENDING, replace(remote, attempts=1))
    return b""
