"""Parallel work on a source's records, with ordered results and a progress bar."""

import multiprocessing
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from clip_jax.data.records import Source
from clip_jax.dataset_tools.bad_samples import BadSample, bad_sample
from clip_jax.errors import DecodeError, UserError
from clip_jax.hosts.children import end_with_parent

Job = TypeVar("Job")
Result = TypeVar("Result")
Count = Callable[[int], None]  # receives the number of newly finished records
Work = Callable[[Source, Job, Count], Result]

_JOBS_AHEAD = 3  # per worker: enough that none waits, few enough that results do not pile up
_POLL_SECONDS = 0.2
_LOG_SECONDS = 15  # between lines of progress if none can be overwritten
_CHUNK = 64  # records in a job of `outcomes`
_COUNTED = 16  # records between a worker's progress reports

_here: dict[str, Any] = {}  # state of a worker process: its source, its work, …


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of 0 … count - 1, evenly spaced."""
    chosen = min(count, most)
    return [number * count // chosen for number in range(chosen)]


def outcomes(
    source: Source,
    indices: Sequence[int],
    use: Callable[[Source, int], Result],
    *,
    workers: int,
    title: str,
) -> Iterator[Result | BadSample]:
    """Yields `use(source, index)` of each record, in order, or why the record cannot be used.

    `use`: a module-level function that reads the record, and may raise DecodeError.
    """
    jobs = [(use, indices[start : start + _CHUNK]) for start in range(0, len(indices), _CHUNK)]
    for part in work_on(source, jobs, _outcomes, workers=workers, total=len(indices), title=title):
        yield from part


def _outcomes(source: Source, job: tuple[Any, Sequence[int]], count: Count) -> list[Any]:
    use, indices = job
    found = []
    for index in each(indices, count):
        try:
            found.append(use(source, index))
        except DecodeError as error:
            found.append(bad_sample(source, index, error))
    return found


def each(indices: Sequence[int], count: Count) -> Iterator[int]:
    """Yields the indices, and reports to `count` as they are finished."""
    for number, index in enumerate(indices, start=1):
        yield index
        if number % _COUNTED == 0:
            count(_COUNTED)
    count(len(indices) % _COUNTED)


def work_on(
    source: Source,
    jobs: Sequence[Job],
    work: Work[Job, Result],
    *,
    workers: int,
    total: int,
    title: str,
) -> Iterator[Result]:
    """Yields `work(source, job, count)` for each job, in order.

    Args:
      work: a module-level function, since it is pickled for the workers.
      workers: number of processes; 0, or a single job, runs in this one.
      total: number of records, for the progress bar.
      title: of the bar.

    Raises:
      UserError: from `work`; or a worker process died.
    """
    bar = tqdm(
        total=total,
        desc=title,
        unit=" samples",
        file=sys.stderr,
        disable=total == 0,
        mininterval=0.2 if sys.stderr.isatty() else _LOG_SECONDS,
    )
    with bar:
        if workers == 0 or len(jobs) < 2:
            for job in jobs:
                yield work(source, job, bar.update)
            return
        yield from _by_processes(source, jobs, work, min(workers, len(jobs)), bar)


def _by_processes(
    source: Source, jobs: Sequence[Job], work: Work[Job, Result], workers: int, bar: Any
) -> Iterator[Result]:
    # Forking a process that has threads (jax, pyarrow) can hang.
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", 0), context.Event()
    pool = ProcessPoolExecutor(workers, context, _start_worker, (source, work, counter, stop))
    waiting = iter(jobs)
    pending: deque[Future[Result]] = deque()
    try:
        for job in waiting:
            pending.append(pool.submit(_do, job))
            if len(pending) >= _JOBS_AHEAD * workers:
                yield _result(pending.popleft(), counter, bar)
        while pending:
            yield _result(pending.popleft(), counter, bar)
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process ended by itself; it may have had too little memory: use fewer"
            " --workers"
        ) from error
    finally:
        # After an error or Ctrl-C, running jobs end at the next record.
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _result(future: Future[Result], counter: Any, bar: Any) -> Result:
    while True:
        wait((future,), timeout=_POLL_SECONDS)
        if counter.value > bar.n:
            bar.update(counter.value - bar.n)
        if future.done():
            return future.result()


def quiet_about_images() -> None:
    """Silences Pillow's warnings of odd files, such as broken EXIF; unusable ones are counted."""
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _start_worker(source: Source, work: Any, counter: Any, stop: Any) -> None:
    # Ctrl-C reaches all processes of the terminal; only the main one reports it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    quiet_about_images()
    _here.update(source=source, work=work, counter=counter, stop=stop)
    end_with_parent()


def _do(job: Any) -> Any:
    return _here["work"](_here["source"], job, _count)


class _Stopped(Exception):
    """Raised to end a job whose result nobody awaits any more."""


def _count(more: int) -> None:
    if _here["stop"].is_set():
        raise _Stopped
    with _here["counter"].get_lock():
        _here["counter"].value += more
