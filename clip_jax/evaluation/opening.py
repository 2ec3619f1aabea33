"""Opening of the data of an evaluation, and the fields of a row that say which data was read."""

from typing import Any

from clip_jax.data.records import Source, split_of
from clip_jax.data.sources.refine import open_refined
from clip_jax.data.task_data import TaskData
from clip_jax.evaluation.groups import group_member

Row = dict[str, Any]

# The first of these splits that exists is evaluated, since the model may have been trained on the
# others.
_SPLITS = ("test", "validation")


def open_captioned(data: TaskData, **changes: Any) -> Source:
    """Opens images with captions; data with splits defaults to the test split."""
    return open_refined(data, **{"preferred_splits": _SPLITS, **changes})


def open_labelled(data: TaskData, **changes: Any) -> Source:
    """Opens images with labels, which need no captions."""
    label_column = group_member(data.group_key) or data.label_key
    return open_captioned(data, needs_captions=False, label_column=label_column, **changes)


def dataset_fields(source: Source, data: TaskData) -> Row:
    """Returns the fields of a row that say which data was read."""
    split = split_of(source)
    return {"dataset": data.path, **({} if split is None else {"split": split})}
