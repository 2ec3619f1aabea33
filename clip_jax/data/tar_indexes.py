"""The indexes of many archives: found, checked against their archives, and made where missing."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clip_jax.data import stores
from clip_jax.data.options import RemoteOptions, SourceOptions
from clip_jax.data.paths import is_remote
from clip_jax.data.stores import Stat, Unavailable
from clip_jax.data.tar_index import (
    ENDING,
    IndexHeader,
    NotATar,
    cached_index,
    make_index,
    options_key,
    read_header,
)
from clip_jax.errors import UserError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]  # archives done, of how many

_STORE_THREADS = 16
_WORTH_PROCESSES_BYTES = 4 << 30  # of archives to be indexed; below, starting them takes longer


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
      shards: those that can be read, in order.
      failed: path -> why there is no index.
      stale: of those made anew, archives that are newer than their index.
    """

    shards: list[Shard] = field(default_factory=list)
    built: int = 0
    failed: dict[str, str] = field(default_factory=dict)
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
    """Finds the index of each archive, and makes what is missing or older than its archive.

    Args:
      paths: archives, here or in a store.
      workers: processes that read archives of this machine.
      beside: new ones are written beside their archives instead of into the cache.
      rebuild: all are made anew.
      options: what captions are read from; an index is good for one choice of columns.
      remote: how stores are asked; None: `options.remote`.
      progress: called after each archive that had to be read.

    Raises:
      UserError: a folder that cannot be written.
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
            logger.warning("%s: its index is older than the archive; made anew", path)
        if shard is None or rebuild:
            missing.append((number, path, stat))
        else:
            found[number] = shard
    made = _make(missing, options, remote, beside, workers)
    for done, (number, outcome) in enumerate(made, start=1):
        if isinstance(outcome, Shard):
            found[number] = outcome
            summary.built += 1
        else:
            summary.failed[paths[number]] = outcome
        if progress is not None:
            progress(done, len(missing))
    summary.shards = [shard for shard in found if shard is not None]
    return summary


def _stats(paths: Sequence[str], remote: RemoteOptions) -> Iterable[Stat | str]:
    """Of each archive, or why it cannot be had."""

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
    """(the archive with its index or None, whether there is one that is too old)."""
    cached = cached_index(path, options)
    is_stale = False
    for index in (cached,) if is_remote(path) else (Path(path + ENDING), cached):
        found = read_header(index)
        if found is None or found[0].options != options_key(options):
            continue
        header, start = found
        newer = not is_remote(path) and index.stat().st_mtime_ns >= int(stat.tag)
        if header.size == stat.size and (header.tag == stat.tag or newer):
            return Shard(path, header, index, start), False
        is_stale = True
    return None, is_stale


def _make(
    missing: list[tuple[int, str, Stat]],
    options: SourceOptions,
    remote: RemoteOptions,
    beside: bool,
    workers: int,
) -> Iterator[tuple[int, Shard | str]]:
    """(number, archive with its new index or why there is none), as they are done."""
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
    if len(elsewhere) == 1:  # no pool: its threads would hold up the end of the process
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


def _opened(path: str, index: Path) -> Shard | str:
    found = read_header(index)
    if found is None:
        return f"{path}: its index {index} vanished"
    return Shard(path, found[0], index, found[1])


def index_file(path: str, stat: Stat, target: Path, options: SourceOptions) -> str | None:
    """Writes the index of a local archive to `target`; None, or why it cannot be read.

    Raises UserError where `target` cannot be written.
    """
    try:
        data = make_index(path, options, stat.tag)
    except NotATar as error:
        return f"{path} is not an uncompressed tar file: {error}"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror or error}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part-{os.getpid()}-{time.monotonic_ns()}")
        part.write_bytes(data)
        part.replace(target)
    except OSError as error:
        raise UserError(f"{target} cannot be written: {error.strerror or error}") from error
    return None


def _index_remote(
    url: str, stat: Stat, target: Path, options: SourceOptions, remote: RemoteOptions, beside: bool
) -> str | None:
    """As `index_file`. An index beside the archive in its store is taken, else one is made."""
    try:
        if not beside:
            target.parent.mkdir(parents=True, exist_ok=True)
            once = RemoteOptions(**{**asdict(remote), "attempts": 1})
            try:
                target.write_bytes(stores.read_bytes(url + ENDING, once))
            except Unavailable:
                pass  # the usual case
            else:
                found = read_header(target)
                if found and found[0].size == stat.size and found[0].tag == stat.tag:
                    return None
        copy = str(stores.fetch(url, remote, stat))
        problem = index_file(copy, stat, target, options)
        if beside and problem is None:
            stores.write_bytes(url + ENDING, target.read_bytes(), remote)
        return problem and problem.replace(copy, url)
    except Unavailable as error:
        return str(error)


def _in_processes(
    jobs: list[tuple[int, str, Stat, Path]], options: SourceOptions, workers: int
) -> Iterator[tuple[int, str | None]]:
    """Processes of their own, not multiprocessing's: it would import the caller's main module."""
    command = [sys.executable, "-m", "clip_jax.data.tar_index_worker"]
    processes = []
    for worker in range(min(workers, len(jobs))):
        mine = [
            (n, path, asdict(stat), str(target)) for n, path, stat, target in jobs[worker::workers]
        ]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        assert process.stdin is not None
        columns = {"caption_column": options.caption_column}
        process.stdin.write(json.dumps({"options": columns, "jobs": mine}) + "\n")
        process.stdin.close()
        processes.append(process)
    try:
        for process in processes:
            assert process.stdout is not None
            for line in process.stdout:
                answer = json.loads(line)
                if "error" in answer:
                    raise UserError(answer["error"])
                yield answer["number"], answer["problem"]
            if process.wait():
                raise UserError(
                    f"a process that makes indexes ended with code {process.returncode};"
                    " run again with fewer workers"
                )
    finally:
        for process in processes:
            process.kill()
            process.wait()
