"""Labelled images of an evaluation that learns: for training, for validation, and the test's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from clip_jax.data.records import Source
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import AnyEmbedders, data_hash, unprojected
from clip_jax.evaluation.labels import Labels, read_labels
from clip_jax.evaluation.opening import Row, dataset_fields, open_labelled
from clip_jax.evaluation.probe.sweep import Examples
from clip_jax.evaluation.recognition import embed_labelled

HELD_OUT = 0.1  # share of the training images that are for validation if no others are given
_SHOWN = 3  # class names in a message


class Learning(NamedTuple):
    """Embedded examples; classes have the same numbers in all of them."""

    train: Examples
    validation: Examples | None
    test: Examples
    records: np.ndarray  # int64 (N,), of the test images
    classnames: tuple[str, ...]
    fields: Row  # that say what was read

    @property
    def samples(self) -> dict[str, np.ndarray]:
        """The arrays that say which images and classes a row is of."""
        return {"records": self.records, "classnames": np.asarray(self.classnames)}


def open_learned(data: TaskData) -> list[Source]:
    """Opens the images to learn from: training and, if they are given, validation images.

    Raises UserError: no training images are named.
    """
    return [open_labelled(each, preferred_splits=(split,)) for each, split in _learned(data)]


def check_learning(source: Source, data: TaskData) -> Sequence[str]:
    """Reads the labels of all images; returns notes on how they were read.

    Raises UserError: classes differ or have no training image, or training images are the test's.
    """
    return [note for labels in _read(source, open_learned(data), data) for note in labels.notes]


def embed_examples(embedders: AnyEmbedders, data: TaskData) -> Learning:
    """Embeds the images of the test and those to learn from. Raises as `check_learning` does."""
    if data.features == "unprojected":
        embedders = unprojected(embedders)
    sources = [open_labelled(data), *open_learned(data)]
    found = [
        (labels, *embed_labelled(embedders, source, labels, data.batch_size))
        for source, labels in zip(sources, _read(sources[0], sources[1:], data), strict=True)
    ]
    test, train, *others = [
        Examples(embeds, labels.numbers[records]) for labels, records, embeds in found
    ]
    validation = others[0] if others else None
    labels, records, _ = found[0]
    _check_each_class(train.labels, labels.names, data)  # some images may be damaged
    fields = {**dataset_fields(sources[0], data), "labels": labels.read_as}
    fields |= {"features": data.features, "num_train_images": len(train.labels)}
    return Learning(train, validation, test, records, labels.names, fields)


def with_validation(learning: Learning, seed: int = 0) -> tuple[Examples, Examples]:
    """Returns training and validation images; the latter are drawn of the former if need be.

    Of each class a tenth is drawn, but at least one, and at most all but one. Raises UserError: no
    class has two images.
    """
    train = learning.train
    if learning.validation is not None:
        return train, learning.validation
    sizes = np.bincount(train.labels)
    held = np.clip(np.round(HELD_OUT * sizes), 1, sizes - 1)
    is_held = ranks_in_class(train.labels, seed) < held[train.labels]
    if not is_held.any():
        raise UserError(
            "validation_data=None: no class has two training images, of which one could choose the"
            " penalty; give validation images"
        )
    return train.part(~is_held), train.part(is_held)


def ranks_in_class(labels: np.ndarray, seed: int) -> np.ndarray:
    """Returns each row's place, from 0, in a random order of the rows of its class: int64 (N,)."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    sizes = np.bincount(labels)
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return ranks


def _learned(data: TaskData) -> list[tuple[TaskData, str]]:
    if data.train_data is None:
        raise UserError("train_data=None: the task learns from labelled images; give a path")
    paths = {"train": data.train_data, "validation": data.validation_data}
    return [
        (replace(data, path=path, split=None), split)
        for split, path in paths.items()
        if path is not None
    ]


def _read(source: Source, learned: Sequence[Source], data: TaskData) -> list[Labels]:
    """Returns the labels of the test's images, then those of the others."""
    found = [read_labels(source, data)]
    for other, (their_data, _) in zip(learned, _learned(data), strict=True):
        # A fingerprint is of names and captions, which folders of other images may share.
        same = other.fingerprint == source.fingerprint
        if same and data_hash(other, "") == data_hash(source, ""):
            raise UserError(f"{their_data.path}: holds the images of the test; others are accepted")
        labels = read_labels(other, their_data)
        _check_same(labels.names, found[0].names, their_data.path, data.path)
        found.append(labels)
    _check_each_class(found[1].numbers, found[1].names, data)
    return found


def _check_each_class(numbers: np.ndarray, names: Sequence[str], data: TaskData) -> None:
    empty = np.setdiff1d(np.arange(len(names)), numbers)
    if len(empty):
        missing = _some([names[number] for number in empty])
        raise UserError(f"{data.train_data}: has no image of {missing}; each class needs one")


def _check_same(names: Sequence[str], of_test: Sequence[str], path: str, test_path: str) -> None:
    more, missing = set(names) - set(of_test), set(of_test) - set(names)
    if more or missing:
        differences = [f"has {_some(sorted(more))}"] * bool(more)
        differences += [f"lacks {_some(sorted(missing))}"] * bool(missing)
        raise UserError(
            f"{path}: classes must be those of {test_path}, but it {' and '.join(differences)};"
            " or give all names by --classnames (config: classnames)"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
