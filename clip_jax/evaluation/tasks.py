"""Evaluation tasks by name: each opens its data and returns rows of metrics.

A new task is a function and a line `TASKS[name] = Task(function)`, here or in a configuration file.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from clip_jax.data.records import Source, split_of
from clip_jax.data.sources.splits import is_for_training
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation import glyph_tasks, matching
from clip_jax.evaluation.embeddings import AnyEmbedders
from clip_jax.evaluation.fairness.faces import check_faces, fairness, open_faces
from clip_jax.evaluation.fairness.skew import check_grouped, open_grouped, skew
from clip_jax.evaluation.opening import Row, open_captioned, open_labelled
from clip_jax.evaluation.probe.evaluators import few_shot, knn, linear_probe
from clip_jax.evaluation.probe.examples import check_learning, open_learned
from clip_jax.evaluation.recognition import (
    check_labelled,
    check_multilabel,
    multilabel,
    zero_shot,
)
from clip_jax.evaluation.robustness import corruptions, resolutions

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: how it measures, and how its data is checked before any work starts."""

    # Returns rows of dataset and metrics by name; rows may have any further keys. "samples" are the
    # arrays behind a row, which a folder of results keeps beside it.
    run: Callable[[AnyEmbedders, TaskData], list[Row]]
    # Opens the data, such as `open_captioned`; None for a task that needs no path.
    open: Callable[[TaskData], Source] | None = None
    # Raises `UserError` for what else it cannot use; returns warnings for the user.
    check: Callable[[Source, TaskData], Sequence[str]] | None = None
    # Opens the images that the task learns from, which are part of what a row is of.
    learned: Callable[[TaskData], list[Source]] | None = None


TASKS: dict[str, Task] = {
    "zero_shot": Task(zero_shot, open_labelled, check_labelled),
    "multilabel": Task(multilabel, open_labelled, check_multilabel),
    "linear_probe": Task(linear_probe, open_labelled, check_learning, open_learned),
    "knn": Task(knn, open_labelled, check_learning, open_learned),
    "few_shot": Task(few_shot, open_labelled, check_learning, open_learned),
    "corruptions": Task(corruptions, open_labelled, check_labelled),
    "resolutions": Task(resolutions, open_labelled, check_labelled),
    "retrieval": Task(matching.retrieval, open_captioned),
    "image_to_image": Task(matching.image_to_image, open_labelled, check_labelled),
    "compositional": Task(matching.compositional, open_captioned),
    "winoground": Task(matching.winoground, lambda data: open_captioned(matching.of_pair(data, 0))),
    "winogavil": Task(matching.winogavil, matching.open_candidates),
    "skew": Task(skew, open_grouped, check_grouped),
    "fairness": Task(fairness, open_faces, check_faces),
    "glyphs/letters": Task(partial(glyph_tasks.letters, "test")),
    "glyphs/retrieval": Task(partial(glyph_tasks.retrieval, "test")),
    "glyphs_validation/letters": Task(partial(glyph_tasks.letters, "validation")),
    "glyphs_validation/retrieval": Task(partial(glyph_tasks.retrieval, "validation")),
}


def check_task(name: str, data: TaskData, where: str | None = None) -> None:
    """Opens a task's data before any work starts, so that mistakes show early.

    Logs warnings for the user: a training split that is evaluated, missing labels. Raises
    `UserError` for an unknown task, and for data, labels, class names or templates that it cannot
    use; the message begins with the key below `where`, such as "config.evaluations[1]", or names
    the flag of `clip_jax.evaluate`.
    """
    if name not in TASKS:
        key = "--tasks" if where is None else f"{where}.task"
        raise UserError(f"{key}={name!r}: choose of {', '.join(TASKS)}")
    task, path_key = TASKS[name], "--data" if where is None else f"{where}.data.path"
    if task.open is None:
        return
    if not data.path:
        raise UserError(f"{path_key}='': task {name!r} needs images; give a folder, a table, tars")
    with _named(f"{path_key}={data.path}" if where else None):
        source = task.open(data)
    split = split_of(source)
    if split is not None and data.split is None and is_for_training(split):
        note = "%s: evaluated on split %r, as there is none for tests; a model may have seen it"
        logger.warning(note, data.path, split)
    if task.check is not None:
        with _named(where):
            notes = task.check(source, data)
        for note in notes:
            logger.warning("%s", note)


@contextlib.contextmanager
def _named(key: str | None) -> Iterator[None]:
    """Puts the key before the message of a `UserError`."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}" if key else str(error)) from error


def run_task(name: str, embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Returns the rows of one task: {"task", "dataset", metrics by name}."""
    rows = ({"task": name, **row} for row in TASKS[name].run(embedders, data))
    return [{key: value for key, value in row.items() if key != "samples"} for row in rows]
