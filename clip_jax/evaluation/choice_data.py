"""Data on which something is chosen, and the data that test the choice: never the same images."""

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clip_jax.data.records import Source, split_of
from clip_jax.data.sources.refine import open_refined
from clip_jax.data.sources.splits import is_for_tests, is_for_training, is_split_name, split_in
from clip_jax.data.task_data import TaskData
from clip_jax.errors import DecodeError, UserError
from clip_jax.evaluation.labels import Labels, read_labels
from clip_jax.evaluation.opening import open_labelled
from clip_jax.files.patterns import is_remote

logger = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """An opened source, what it was opened by, and its classes."""

    source: Source
    data: TaskData
    labels: Labels


def open_both(data: TaskData, test_path: str | None) -> list[Labelled]:
    """Opens the data of a choice, and if given those of its test, whose options are the same.

    Logs notes on how labels were read. Raises UserError: see `open_for_choice` and
    `refuse_shared_images`; also for classes that differ.
    """
    opened = [(open_for_choice(data), data)]
    if test_path:
        # The split and the list of images to leave out are those of the choice.
        test = dataclasses.replace(data, path=test_path, split=None, exclude="")
        opened.append((open_labelled(test), test))
        refuse_shared_images(opened[0][0], opened[1][0], test_path)
    found = [Labelled(source, each, read_labels(source, each)) for source, each in opened]
    for each in found:
        for note in each.labels.notes:
            logger.warning("%s", note)
        if each.labels.prompt_names != found[0].labels.prompt_names:
            raise UserError(
                f"--test_data={test_path}: its {len(each.labels.names)} classes are not the"
                f" {len(found[0].labels.names)} of --data; give the names of all by --classnames"
            )
    return found


def open_for_choice(data: TaskData) -> Source:
    """Opens labelled images on which something is to be chosen; prefers the validation split.

    A test split is accepted, with a warning, only if no other is there: in the same data, or of a
    local path such as photos/test, beside it.

    Raises UserError: the test split of data that has another, or as `open_source` does.
    """
    source = _open(data)
    split = split_of(source) or _split_of_path(data.path)
    if split is None:
        return source
    if is_for_tests(split):
        other = _other_split(data, source)
        if other is not None:
            raise UserError(
                f"--data={data.path}: its split {split!r} is for tests, and a choice made on it has"
                f" no honest test left; give another ({other}) or photos cut from the training data"
            )
        note = "%s: prompts are chosen on split %r, as there is no other; test them elsewhere"
        logger.warning(note, data.path, split)
    elif is_for_training(split):
        note = "%s: prompts are chosen on split %r; a model that was trained on it misleads"
        logger.warning(note, data.path, split)
    return source


def refuse_shared_images(chosen_on: Source, tested_on: Source, test_path: str) -> None:
    """Raises UserError if an image occurs in both sources, byte for byte or pixel for pixel."""
    known = {digest for digest, _ in _digests(chosen_on)}
    shared = [key for digest, key in _digests(tested_on) if digest in known]
    if shared:
        raise UserError(
            f"--test_data={test_path}: {len(shared):,} of its {len(tested_on):,} images are in"
            f" --data too, such as {shared[0]}; leave them out by --exclude=FILE, the list that"
            f" python -m clip_jax.data hashes writes of {test_path}"
        )


def _open(data: TaskData) -> Source:
    return open_refined(
        data,
        preferred_splits=("validation",),
        needs_captions=False,
        label_column=data.label_key,
    )


def _split_of_path(path: str) -> str | None:
    """Returns the split that a path such as photos/test or photos/test-0.tar names."""
    last = Path(path)
    return split_in(last.name) or (last.parent.name if is_split_name(last.parent.name) else None)


def _other_split(data: TaskData, source: Source) -> str | None:
    """Returns another split of the same data; None if there is none."""
    if split_of(source) is not None:
        try:
            other = split_of(_open(dataclasses.replace(data, split=None)))
        except UserError:  # several, none of which is preferred
            return "--split"
        return None if other is None or is_for_tests(other) else f"--split={other}"
    path = Path(data.path)
    if is_remote(data.path):
        return "--data"
    if split_in(path.name) is None:
        path = path.parent
    beside = sorted(path.parent.iterdir()) if path.parent.is_dir() else []
    found = {str(each): split_in(each.name) for each in beside}
    others = {name: split for name, split in found.items() if split and not is_for_tests(split)}
    return min(others, key=lambda name: is_for_training(others[name]), default=None)


def _digests(source: Source) -> Iterator[tuple[bytes, str]]:
    """Yields (hash of the image, key) of every record that can be read."""
    for index in range(len(source)):
        try:
            record = source[index]
        except DecodeError:
            continue
        image = record.image
        data = image if isinstance(image, bytes) else f"{image.shape}".encode() + image.tobytes()
        yield hashlib.sha256(data).digest(), record.key
