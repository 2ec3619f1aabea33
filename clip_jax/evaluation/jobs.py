"""Runs of many tasks on many sets: each is opened, hashed, and computed unless it is finished.

One that fails is a row with its reason, and the others go on.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from clip_jax.data.records import Source
from clip_jax.data.task_data import TaskData
from clip_jax.errors import DecodeError, UserError
from clip_jax.evaluation.comparison import pairs
from clip_jax.evaluation.disagreement import Disagreement, disagreements
from clip_jax.evaluation.embeddings import AnyEmbedders, data_hash, prompts_hash
from clip_jax.evaluation.labels import read_labels
from clip_jax.evaluation.opening import Row
from clip_jax.evaluation.pictures import with_pictures
from clip_jax.evaluation.recognition import check_labelled, prompts_of
from clip_jax.evaluation.results import Results
from clip_jax.evaluation.suites.opening import open_set
from clip_jax.evaluation.suites.running import named_row
from clip_jax.evaluation.suites.sets import EvaluationSet
from clip_jax.evaluation.tasks import TASKS
from clip_jax.hosts.agreement import from_first

_NOT_OF_RESULTS = ("path", "batch_size", "remote")  # fields of data that change no result


class Job(NamedTuple):
    """One task on one set; `chosen` is the set's row if it has one."""

    task: str
    data: TaskData
    chosen: EvaluationSet | None = None

    @property
    def name(self) -> str:
        """The dataset, in messages and in the row of a failure."""
        return self.data.path or self.task if self.chosen is None else self.chosen.name


class _Opened(NamedTuple):
    source: Source | None
    data: TaskData
    prompts: tuple[str, ...]  # what the text tower is asked, or stands for it
    finish: Callable[[Row], Row]  # adds a set's fields


def run_jobs(
    model: str,
    model_hash: str,
    embedders: AnyEmbedders,
    jobs: Sequence[Job],
    results: Results,
    *,
    data_root: str = "",
    say: Callable[[str], None] = print,
) -> bool:
    """Evaluates a model on every job that `results` does not have; returns whether all went well.

    Several processes call it alike; the first one writes.

    Raises UserError: a job failed, and the results have no folder in which to say so.
    """
    failures, started = 0, time.perf_counter()
    for number, job in enumerate(jobs, 1):
        begun = time.perf_counter()
        fields = {"model": model, "task": job.task, "dataset": job.name}
        try:
            opened = _open(job, data_root)
            identity = {
                "model_hash": model_hash,
                "data_hash": _data_hash(job, opened),
                "prompts_hash": prompts_hash(opened.prompts),
                "settings_hash": _settings_hash(job, opened.data),
            }
            if from_first(bool(results.find({"model": model, "task": job.task, **identity}))):
                say(f"{number}/{len(jobs)} {job.task}, {job.name}: finished before")
                continue
            found = TASKS[job.task].run(embedders, opened.data)
        except UserError as error:
            if results.folder is None:
                raise
            failures += 1
            say(f"{number}/{len(jobs)} {job.task}, {job.name}: {error}")
            rows: list[tuple[Row, dict[str, np.ndarray]]]
            rows = [({**fields, "error": str(error)}, {})]
        else:
            seconds = round((time.perf_counter() - begun) / len(found), 3)
            rows = []
            for row in found:
                samples = with_pictures(row.pop("samples", {}), opened.source)
                rows.append(
                    (opened.finish({**fields, **row, **identity, "seconds": seconds}), samples)
                )
            taken = time.perf_counter() - started
            left = taken / number * (len(jobs) - number)
            say(
                f"{number}/{len(jobs)} {job.task}, {job.name}:"
                f" {time.perf_counter() - begun:.1f} s, about {left:,.0f} s left"
            )
        if jax.process_index() == 0:
            results.add(rows)
    return not failures


def find_disagreements(
    jobs: Sequence[Job], results: Results, data_root: str = ""
) -> list[Disagreement]:
    """Returns the examples on which models disagree, of all jobs with rows of two models."""
    sources: dict[tuple[str, str], Source] = {}
    for job in jobs:
        try:
            opened = _open(job, data_root)
        except UserError:
            continue  # the set's row says why
        if opened.source is not None:
            sources[job.task, _data_hash(job, opened)] = opened.source
    found: list[Disagreement] = []
    for pair in pairs(results):
        # Rows of other data, such as an earlier state of the set, have no source.
        source = sources.get((pair.first["task"], pair.first["data_hash"]))
        if source is not None:
            found += disagreements(pair, source)
    return found


def _open(job: Job, data_root: str) -> _Opened:
    if job.chosen is not None:
        opened = open_set(job.chosen, data_root)
        names = opened.labels.prompt_names if opened.labels is not None else ()
        return _Opened(
            opened.source,
            opened.data,
            tuple(_prompts(names, opened.templates)),
            lambda row: named_row(opened, row),
        )
    task = TASKS[job.task]
    if task.open is None:
        return _Opened(None, job.data, (job.task,), lambda row: row)
    source, prompts = task.open(job.data), tuple[str, ...]()
    if task.check is not None:
        task.check(source, job.data)
    if task.check is check_labelled:
        of_classes = prompts_of(read_labels(source, job.data), job.data)
        prompts = tuple(text for of_class in of_classes for text in of_class)
    return _Opened(source, job.data, prompts, lambda row: row)


def _prompts(names: Sequence[Any], templates: Sequence[str]) -> Iterator[str]:
    """Yields each class's names, then the templates, which say as much as all prompts."""
    for of_class in names:
        yield repr(of_class)
    yield from templates


def _data_hash(job: Job, opened: _Opened) -> str:
    """Hashes images and captions, and all other fields of the records if the task reads labels.

    The transform is the model's, and in its hash; models of other image sizes see the same data.
    """
    source = opened.source
    if source is None:  # glyphs, which come with the package
        return prompts_hash([job.task])
    digest = hashlib.sha256(data_hash(source, None).encode())
    if TASKS[job.task].check is not None:
        for index in range(len(source)):
            try:
                digest.update(repr(sorted(source.metadata(index).items())).encode())
            except DecodeError as error:
                digest.update(str(error).encode())
    return digest.hexdigest()


def _settings_hash(job: Job, data: TaskData) -> str:
    """Hashes the set's name and the options that change a result; of files, their content."""
    digest = hashlib.sha256(job.name.encode())
    for key, value in dataclasses.asdict(data).items():
        if key in _NOT_OF_RESULTS:
            continue
        digest.update(f"{key}={value!r}".encode())
        if isinstance(value, str) and value and Path(value).is_file():
            digest.update(Path(value).read_bytes())
    return digest.hexdigest()
