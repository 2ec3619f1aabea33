"""Opening of a set: its images, labels and groups, and whether they are all there."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_jax.data.records import Source
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.associations import read_associations
from clip_jax.evaluation.groups import read_groups
from clip_jax.evaluation.labels import UNLABELLED, Labels, read_labels
from clip_jax.evaluation.prompts import get_classes, get_templates
from clip_jax.evaluation.recognition import read_targets
from clip_jax.evaluation.suites.finding import find_data
from clip_jax.evaluation.suites.sets import EvaluationSet
from clip_jax.evaluation.tasks import TASKS


@dataclass(frozen=True)
class OpenedSet:
    """A set with its data.

    Attributes:
      set: the row of the table.
      data: what `run_task(set.kind, …, data)` evaluates.
      source: the opened images.
      labels: classes of the images and their names; None for a kind without, or with several.
      targets: bool (N, C), the classes of each image of a multi-label set.
      groups: str (N,), the group of each image for worst-group accuracy, or `groups.NO_GROUP`.
      templates: of the prompts; () for a kind without classes.
    """

    set: EvaluationSet
    data: TaskData
    source: Source
    labels: Labels | None = None
    targets: np.ndarray | None = None
    groups: np.ndarray | None = None
    templates: tuple[str, ...] = ()


def open_set(chosen: EvaluationSet, data_root: str = "", *, subset: bool = False) -> OpenedSet:
    """Opens a set below `data_root`, a folder or URL, or at the path of a user's own.

    Args:
      subset: allows another number of images than the set has, for a trial on a part.

    Raises:
      UserError: the set is not there (with the places looked at and how to get it), its classes,
        images or captions are not as many as expected, or a label, class name, template or group
        cannot be used.
    """
    data = _with_groups(chosen, find_data(chosen, data_root))
    opened = OpenedSet(chosen, data, _open(chosen, data))
    if chosen.kind == "zero_shot":
        labels = read_labels(opened.source, data)
        _check_number(chosen, "classes", len(labels.classes), chosen.classes, data)
        opened = dataclasses.replace(opened, labels=labels, templates=get_templates(data.templates))
    elif chosen.kind == "multilabel":
        classes = get_classes(data.classnames) if data.classnames else ()
        _check_number(chosen, "classes", len(classes), chosen.classes, data)
        targets = read_targets(opened.source, data.label_key, len(classes))
        templates = get_templates(data.templates)
        opened = dataclasses.replace(opened, targets=targets, templates=templates)
    if data.group_key is not None:
        opened = dataclasses.replace(opened, groups=read_groups(opened.source, data))
    if not subset:
        _check_samples(opened)
    return opened


def _with_groups(chosen: EvaluationSet, data: TaskData) -> TaskData:
    """Returns the data with the field of the groups: a column, or the `.npy` beside an image."""
    key = data.group_key or chosen.group
    if chosen.group_at is not None and data.format == "webdataset":
        key = f"npy[{chosen.group_at}]"
    return dataclasses.replace(data, group_key=key)


def _open(chosen: EvaluationSet, data: TaskData) -> Source:
    open_data = TASKS[chosen.kind].open
    assert open_data is not None
    return open_data(data)


def _check_number(
    chosen: EvaluationSet, what: str, found: int, expected: Any, data: TaskData
) -> None:
    """Raises UserError if there are not as many as one of `expected`, a number or several."""
    wanted = expected if isinstance(expected, tuple) else (expected,)
    if expected in (None, ()) or found in wanted:
        return
    numbers = " or ".join(f"{number:,}" for number in wanted)
    where = f"{data.path}" if what != "classes" else f"{data.classnames or data.path}"
    advice = "" if what == "classes" else "; a part is evaluated only where one is asked for"
    raise UserError(f"{chosen.name}: {found:,} {what} in {where}, expected {numbers}{advice}")


def _check_samples(opened: OpenedSet) -> None:
    source, chosen, data = opened.source, opened.set, opened.data
    found = len(source)
    if opened.labels is not None:
        found = int((opened.labels.numbers != UNLABELLED).sum())
    elif chosen.kind == "winogavil":
        found = len(read_associations(data.path))
    if chosen.texts or chosen.kind == "compositional":
        texts = sum(len(source.captions(index)) for index in range(len(source)))
        _check_number(chosen, "captions", texts, chosen.texts, data)
        found = texts // 2 if chosen.kind == "compositional" else found
    has_problems = chosen.kind in ("compositional", "winoground", "winogavil")
    what = "problems" if has_problems else "images"
    _check_number(chosen, what, found, chosen.samples, data)
