"""Indexes of many archives: found, checked against their archives, and built if missing."""

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from clip_jax.data.options import SourceOptions
from clip_jax.data.tars.build import NotATar, make_index
from clip_jax.data.tars.index import (
    ENDING,
    IndexHeader,
    cached_index,
    cached_indexes,
    content_digest,
    is_index_for,
    parse_header,
    range_reader,
    read_header,
    whole_size,
    with_tag,
)
from clip_jax.errors import UserError
from clip_jax.files import stores
from clip_jax.files.options import RemoteOptions
from clip_jax.files.patterns import is_remote
from clip_jax.files.stores import Stat, Unavailable

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # archives done, total

_STORE_THREADS = 16
_WORTH_PROCESSES_BYTES = 4 << 30  # of archives to index; below this, starting processes costs more


class Problem(NamedTuple):
    """The reason why an archive has no index."""

    reason: str
    is_tar: bool = True  # False: readable, but not an uncompressed tar


@dataclass(frozen=True)
class Shard:
    """An archive with its index."""

    path: str
    header: IndexHeader
    index: Path
    table_start: int


@dataclass
class IndexSummary:
    """Outcome of `build_indexes`.

    Attributes:
      shards: the readable archives, in order.
      failed: path -> why there is no index.
      no_tars: failed paths that are readable but not uncompressed tars.
      beside: number of indexes copied from the cache to beside their archives.
      stale: archives whose index was of another version of the archive, and was rebuilt.
    """

    shards: list[Shard] = field(default_factory=list)
    built: int = 0
    beside: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    no_tars: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)


def build_indexes(
    paths: Sequence[str],
    *,
    workers: int = 1,
    beside: bool = False,
    rebuild: bool = False,
    options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    remote: RemoteOptions | None = None,
    progress: Progress | None = None,
) -> IndexSummary:
    """Finds the index of each archive, and builds those that are missing or stale.

    Args:
      paths: archives, local or remote.
      workers: processes that read local archives.
      beside: writes indexes beside their archives instead of into the cache, and copies cached
        ones there.
      rebuild: rebuilds all indexes.
      options: the caption columns; an index is valid for one choice of them.
      remote: options for stores; None: `options.remote`.
      progress: called after each archive that had to be read.

    Raises:
      UserError: a folder cannot be written.
    """
    remote = remote or options.remote
    summary = IndexSummary()
    found: list[Shard | None] = []
    missing: list[tuple[int, str, Stat]] = []
    for number, (path, stat) in enumerate(zip(paths, _stats(paths, remote), strict=True)):
        found.append(None)
        if isinstance(stat, str):
            summary.failed[path] = stat
            continue
        shard, is_stale = _existing(path, stat, options, remote)
        if is_stale:
            summary.stale.append(path)
            logger.warning(
                "%s: its index is older than the archive or of another one; made anew", path
            )
        if shard is None or rebuild:
            missing.append((number, path, stat))
        else:
            found[number] = shard
    if beside:
        _copy_beside(found, remote, summary)
    made = _make(missing, options, remote, beside, workers)
    for done, (number, outcome) in enumerate(made, start=1):
        if isinstance(outcome, Shard):
            found[number] = outcome
            summary.built += 1
        else:
            summary.failed[paths[number]] = outcome.reason
            if not outcome.is_tar:
                summary.no_tars.append(paths[number])
        if progress is not None:
            progress(done, len(missing))
    summary.shards = [shard for shard in found if shard is not None]
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


def _existing(
    path: str, stat: Stat, options: SourceOptions, remote: RemoteOptions
) -> tuple[Shard | None, bool]:
    """Returns (the archive with its index or None, whether a stale index was found)."""
    is_stale = False
    beside = () if is_remote(path) else (Path(path + ENDING),)
    for index in (*beside, *cached_indexes(path, options)):
        is_beside = index in beside
        found = read_header(index)
        if found is None or not is_index_for(found[0], options):
            continue
        header, start = found
        # An older time proves nothing, because mv and cp -p keep it.
        is_same = header.size == stat.size and header.tag == stat.tag
        if is_same or (is_beside and _is_copy(path, stat, header)):
            return Shard(path, header, index, start), False
        is_stale = True
    return None, is_stale


def _is_copy(
    path: str, stat: Stat, header: IndexHeader, remote: RemoteOptions | None = None
) -> bool:
    """Returns whether an index that was copied along with an archive belongs to this one.

    `remote`: options of its store, if the archive is remote. Raises Unavailable.
    """
    if header.size != stat.size:
        return False
    if remote is not None:
        read = partial(stores.read_range, path, remote=remote)
        return content_digest(stat.size, read) == header.content
    try:
        with open(path, "rb") as file:
            return content_digest(stat.size, range_reader(file)) == header.content
    except OSError:
        return False


def _make(
    missing: list[tuple[int, str, Stat]],
    options: SourceOptions,
    remote: RemoteOptions,
    beside: bool,
    workers: int,
) -> Iterator[tuple[int, Shard | Problem]]:
    """Yields (number, archive with its new index or the problem) as each is done."""
    jobs = [(number, path, stat, _target(path, options, beside)) for number, path, stat in missing]
    targets = {number: (path, target) for number, path, _, target in jobs}
    here = [job for job in jobs if not is_remote(job[1])]
    if workers > 1 and sum(job[2].size for job in here) >= _WORTH_PROCESSES_BYTES:
        done = _in_processes(here, options, workers)
    else:
        done = ((job[0], index_file(*job[1:], options)) for job in here)
    for number, problem in done:
        yield number, problem or _opened(*targets[number])
    elsewhere = [job for job in jobs if is_remote(job[1])]
    if len(elsewhere) == 1:  # no pool: its threads would delay the exit of the process
        job = elsewhere[0]
        problem = _index_remote(*job[1:], options, remote, beside)
        yield job[0], problem or _opened(*targets[job[0]])
        return
    with ThreadPoolExecutor(_STORE_THREADS) as pool:
        futures = {
            job[0]: pool.submit(_index_remote, *job[1:], options, remote, beside)
            for job in elsewhere
        }
        for number, future in futures.items():
            yield number, future.result() or _opened(*targets[number])


def _target(path: str, options: SourceOptions, beside: bool) -> Path:
    return Path(path + ENDING) if beside and not is_remote(path) else cached_index(path, options)


def _opened(path: str, index: Path) -> Shard | Problem:
    found = read_header(index)
    if found is None:
        return Problem(f"{path}: its index {index} vanished")
    return Shard(path, found[0], index, found[1])


def index_file(path: str, stat: Stat, target: Path, options: SourceOptions) -> Problem | None:
    """Writes the index of a local archive to `target`; returns None, or the problem.

    Raises UserError if `target` cannot be written.
    """
    try:
        data = make_index(path, options, stat.tag)
    except NotATar as error:
        return Problem(f"{path} is not an uncompressed tar file: {error}", is_tar=False)
    except OSError as error:
        return Problem(f"{path} cannot be read: {error.strerror or error}")
    _write(target, data)
    return None


def _write(target: Path, data: bytes) -> None:
    part = target.with_name(f"{target.name}.part-{os.getpid()}-{time.monotonic_ns()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise stores.unwritable(target, error) from error


def _copy_beside(found: list[Shard | None], remote: RemoteOptions, summary: IndexSummary) -> None:
    """Copies cached indexes beside their archives, and updates `found`."""

    def copy(shard: Shard) -> Shard | Problem | None:
        try:
            return _beside(shard, remote)
        except OSError as error:
            return Problem(str(error))

    shards = [(number, shard) for number, shard in enumerate(found) if shard is not None]
    with ThreadPoolExecutor(_STORE_THREADS) as pool:
        copied = pool.map(copy, [shard for _, shard in shards])
        for (number, shard), outcome in zip(shards, copied, strict=True):
            if isinstance(outcome, Shard):
                found[number] = outcome
                summary.beside += 1
            elif outcome is not None:
                found[number] = None
                summary.failed[shard.path] = outcome.reason


def _beside(shard: Shard, remote: RemoteOptions) -> Shard | Problem | None:
    """Returns the archive with its copied index, the problem, or None if it is already there.

    Raises OSError, such as Unavailable.
    """
    url = shard.path + ENDING
    if not is_remote(shard.path):
        tag = str(os.stat(shard.path).st_mtime_ns)
        if shard.index == Path(url) and shard.header.tag == tag:
            return None
        # An index copied with its archive gets the copy's time, to save comparing it again.
        _write(Path(url), with_tag(shard.index.read_bytes(), tag))
        return _opened(shard.path, Path(url))
    data = shard.index.read_bytes()
    try:
        if stores.read_bytes(url, _once(remote)) == data:
            return None
    except Unavailable:
        pass  # it is not there yet
    stores.write_bytes(url, data, remote)
    return shard


def _index_remote(
    url: str, stat: Stat, target: Path, options: SourceOptions, remote: RemoteOptions, beside: bool
) -> Problem | None:
    """Does what `index_file` does, for a remote archive; prefers an index in its store."""
    try:
        if not beside:
            try:
                data = stores.read_bytes(url + ENDING, _once(remote))
            except Unavailable:
                pass  # the usual case
            else:
                if _is_index_of(data, url, stat, options, remote):
                    _write(target, with_tag(data, stat.tag))
                    return None
        copy = str(stores.fetch(url, remote, stat))
        problem = index_file(copy, stat, target, options)
        if problem is not None:
            return problem._replace(reason=problem.reason.replace(copy, url))
        if beside:
            stores.write_bytes(url + ENDING, target.read_bytes(), remote)
        return None
    except Unavailable as error:
        return Problem(str(error))


def _once(remote: RemoteOptions) -> RemoteOptions:
    """Returns options with one attempt, for files that usually do not exist."""
    return replace(remote, attempts=1)


def _is_index_of(
    data: bytes, url: str, stat: Stat, options: SourceOptions, remote: RemoteOptions
) -> bool:
    """Returns whether `data` is a complete index of a remote archive, for these options."""
    try:
        found = parse_header(data)
    except EOFError:
        return False
    if found is None or len(data) != whole_size(*found):
        return False
    header = found[0]
    if not is_index_for(header, options):
        return False
    is_same = header.size == stat.size and header.tag == stat.tag
    return is_same or _is_copy(url, stat, header, remote)


def _in_processes(
    jobs: list[tuple[int, str, Stat, Path]], options: SourceOptions, workers: int
) -> Iterator[tuple[int, Problem | None]]:
    """Yields (number, problem) from subprocesses; multiprocessing would import the caller's main
    module."""
    command = [sys.executable, "-m", "clip_jax.data.tars.worker"]
    processes = []
    for worker in range(min(workers, len(jobs))):
        mine = [
            (n, path, asdict(stat), str(target)) for n, path, stat, target in jobs[worker::workers]
        ]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdin is not None
        used = {
            "caption_column": options.caption_column,
            "needs_captions": options.needs_captions,
            "label_column": options.label_column,
        }
        process.stdin.write(json.dumps({"options": used, "jobs": mine}) + "\n")
        process.stdin.close()
        processes.append(process)
    try:
        for process in processes:
            assert process.stdout is not None
            for line in process.stdout:
                answer = json.loads(line)
                if "error" in answer:
                    raise UserError(answer["error"])
                yield answer["number"], answer["problem"] and Problem(*answer["problem"])
            if process.wait():
                raise UserError(
                    f"a process that makes indexes ended with code {process.returncode};"
                    " run again with fewer workers"
                )
    finally:
        for process in processes:
            process.kill()
            process.wait()
