"""Evaluation tasks by name: each opens its data and returns rows of metrics.

A new task is a function and a line `TASKS[name] = Task(function)`, here or in a configuration file.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.records import Source, split_of
from clip_jax.data.sources import glyphs
from clip_jax.data.sources.refine import open_refined
from clip_jax.data.sources.splits import is_for_training
from clip_jax.data.stream.evaluation_batches import evaluation_batches
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.associations import jaccard, jaccard_metrics, read_associations
from clip_jax.evaluation.compositional import match_hits, pair_scores
from clip_jax.evaluation.labels import UNLABELLED, read_labels
from clip_jax.evaluation.prompts import get_templates
from clip_jax.evaluation.retrieval import retrieval_recalls
from clip_jax.evaluation.zero_shot import evaluate_zero_shot
from clip_jax.images.transform import ImageTransform

logger = logging.getLogger(__name__)

# The first of these splits that exists is evaluated, since the model may have been trained on the
# others.
_SPLITS = ("test", "validation")

Row = dict[str, Any]
Embed = Callable[[Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Embedders:
    """The functions through which an evaluation sees a model."""

    embed_image: Embed  # uint8 (N, S, S, 3) -> float32 (N, D), rows of length 1
    embed_text: Embed  # list[str] -> float32 (N, D), rows of length 1
    transform: ImageTransform  # anything -> uint8 (S, S, 3)


@dataclasses.dataclass(frozen=True)
class Task:
    """A task: how it measures, and how its data is checked before any work starts."""

    # Returns rows of dataset and metrics by name; rows may have any further keys.
    run: Callable[[Embedders, TaskData], list[Row]]
    # Opens the data, such as `open_captioned`; None for a task that needs no path.
    open: Callable[[TaskData], Source] | None = None
    # Raises `UserError` for what else it cannot use; returns warnings for the user.
    check: Callable[[Source, TaskData], Sequence[str]] | None = None


def open_captioned(data: TaskData, **changes: Any) -> Source:
    """Opens images with captions; data with splits defaults to the test split."""
    return open_refined(data, preferred_splits=_SPLITS, **changes)


def open_labelled(data: TaskData) -> Source:
    """Opens images with labels, which need no captions."""
    return open_captioned(data, needs_captions=False, label_column=data.label_key)


def _check_labelled(source: Source, data: TaskData) -> Sequence[str]:
    get_templates(data.templates)
    return read_labels(source, data).notes


def _dataset(source: Source, data: TaskData) -> Row:
    """Returns the fields of a row that say which data was read."""
    split = split_of(source)
    return {"dataset": data.path, **({} if split is None else {"split": split})}


def zero_shot(embedders: Embedders, data: TaskData) -> list[Row]:
    """Measures zero-shot classification of labelled images (paper section 3.1)."""
    source = open_labelled(data)
    labels = read_labels(source, data)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for indices, images in evaluation_batches(source, embedders.transform, data.batch_size):
            numbers = labels.numbers[indices]
            is_labelled = numbers != UNLABELLED
            if is_labelled.any():
                yield images[is_labelled], numbers[is_labelled]

    metrics = evaluate_zero_shot(
        embedders.embed_image,
        embedders.embed_text,
        batches(),
        labels.prompt_names,
        get_templates(data.templates),
    )
    row = {**_dataset(source, data), "templates": data.templates, "labels": labels.read_as}
    unlabelled = {"num_unlabelled": labels.num_unlabelled} if labels.num_unlabelled else {}
    return [{**row, **metrics, **unlabelled}]


def retrieval(embedders: Embedders, data: TaskData) -> list[Row]:
    """Measures recall at 1, 5, 10 both ways; a caption of several images is right for each."""
    source = open_captioned(data)
    image_embeds, used = _embed_images(embedders, source, data)
    captions = [source.captions(index) for index in used]
    texts = [text for group in captions for text in group]
    image_of_text = np.repeat(np.arange(len(used)), [len(group) for group in captions])
    metrics = retrieval_recalls(
        image_embeds, embedders.embed_text(texts), image_of_text, texts=texts
    )
    return [{**_dataset(source, data), **metrics}]


def _embed_images(
    embedders: Embedders, source: Source, data: TaskData
) -> tuple[np.ndarray, list[int]]:
    """Returns (embeddings float32 (N, D), numbers of their records), of all usable images.

    Raises UserError if there is none.
    """
    embeds, used = [], []
    bad: dict[str, str] = {}
    for indices, images in evaluation_batches(source, embedders.transform, data.batch_size, bad):
        embeds.append(embedders.embed_image(images))
        used.extend(indices.tolist())
    if not embeds:
        key, reason = next(iter(bad.items()), ("", "there is none"))
        raise UserError(f"{data.path}: no image can be used; the first is {key}: {reason}")
    return np.concatenate(embeds), used


def compositional(embedders: Embedders, data: TaskData) -> list[Row]:
    """Measures how often an image's right caption is above a wrong one: captions come in pairs."""
    source = open_captioned(data)
    image_embeds, used = _embed_images(embedders, source, data)
    captions = [source.captions(index) for index in used]
    for index, group in zip(used, captions, strict=True):
        if len(group) % 2:
            raise UserError(
                f"{data.path}: {source.key(index)} has {len(group)} captions; accepted are pairs of"
                " a right and a wrong one"
            )
    texts = [text for group in captions for text in group]
    image_of_pair = np.repeat(np.arange(len(used)), [len(group) // 2 for group in captions])
    hits = match_hits(pair_scores(image_embeds, embedders.embed_text(texts), image_of_pair))
    sizes = {"num_images": len(used), "num_samples": len(image_of_pair)}
    return [
        {**_dataset(source, data), "text_accuracy": float(hits["text_accuracy"].mean()), **sizes}
    ]


def _of_pair(data: TaskData, number: int) -> TaskData:
    """Returns the data of one of Winoground's two images and captions."""
    return dataclasses.replace(
        data, image_column=f"image_{number}", caption_column=f"caption_{number}"
    )


def winoground(embedders: Embedders, data: TaskData) -> list[Row]:
    """Matches two images with two captions, of columns image_0, image_1, caption_0, caption_1."""
    parts = [_of_pair(data, number) for number in (0, 1)]
    sources = [open_captioned(part) for part in parts]
    if len(sources[0]) != len(sources[1]):
        sizes = " and ".join(str(len(source)) for source in sources)
        raise UserError(f"{data.path}: has {sizes} usable rows of its two images; give whole rows")
    embeds, used = zip(
        *(_embed_images(embedders, *each) for each in zip(sources, parts, strict=True)),
        strict=True,
    )
    both = np.intersect1d(*used)
    images_Nx2xD = np.stack([e[np.isin(u, both)] for e, u in zip(embeds, used, strict=True)], 1)
    texts = [source.captions(int(index))[0] for index in both for source in sources]
    texts_Nx2xD = np.asarray(embedders.embed_text(texts)).reshape(images_Nx2xD.shape)
    hits = match_hits(np.einsum("nid,ntd->nit", images_Nx2xD, texts_Nx2xD))
    metrics = {name: float(values.mean()) for name, values in hits.items()}
    return [{**_dataset(sources[0], data), **metrics, "num_samples": len(both)}]


def _open_candidates(data: TaskData) -> Source:
    """Opens WinoGAViL's images."""
    read_associations(data.path)
    return open_captioned(data, needs_captions=False)


def winogavil(embedders: Embedders, data: TaskData) -> list[Row]:
    """Measures which candidate images a cue is associated with (see `associations.py`)."""
    problems, source = read_associations(data.path), _open_candidates(data)
    image_embeds, used = _embed_images(embedders, source, data)
    files = [Path(source.key(index)) for index in used]
    image_of = {name: row for row, file in enumerate(files) for name in (file.name, file.stem)}
    texts = embedders.embed_text([problem.prompt for problem in problems])
    values = []
    for problem, text in zip(problems, texts, strict=True):
        missing = [name for name in problem.candidates if name not in image_of]
        if missing:
            raise UserError(f"{data.path}: no usable image of the candidate {missing[0]!r}")
        rows = [image_of[name] for name in problem.candidates]
        values.append(jaccard(image_embeds[rows] @ text, np.asarray(problem.is_associated)))
    metrics = jaccard_metrics(np.asarray(values), (len(each.candidates) for each in problems))
    sizes = {"num_images": len(used), "num_samples": len(problems)}
    return [{**_dataset(source, data), **metrics, **sizes}]


def _glyph_letters(split: str, embedders: Embedders, _: TaskData) -> list[Row]:
    source = glyphs.open_glyphs(split)
    chosen = [i for i, c in enumerate(source.codepoints) if glyphs.is_ascii_letter(int(c))]
    names = [source.names[i] for i in chosen]
    images = np.stack([embedders.transform(source[i].image) for i in chosen])
    metrics = evaluate_zero_shot(
        embedders.embed_image,
        embedders.embed_text,
        [(images, np.arange(len(chosen)))],
        names,
        get_templates("none"),
    )
    return [{"dataset": f"glyphs/{split}", **metrics}]


def _glyph_retrieval(split: str, embedders: Embedders, _: TaskData) -> list[Row]:
    source = glyphs.open_glyphs(split)
    images = np.stack([embedders.transform(source[i].image) for i in range(len(source))])
    image_embeds = embedders.embed_image(images)
    text_embeds = embedders.embed_text(list(source.names))
    seen_names = set(glyphs.open_glyphs("train").names)
    seen = np.asarray([name in seen_names for name in source.names])
    rows = []
    for part, queries in (("", None), ("/seen_names", seen), ("/unseen_names", ~seen)):
        if queries is not None and not (queries.any() and (~queries).any()):
            continue  # all names of a DejaVu face are seen
        metrics = retrieval_recalls(
            image_embeds,
            text_embeds,
            np.arange(len(source)),
            image_query_mask=queries,
            text_query_mask=queries,
        )
        rows.append({"dataset": f"glyphs/{split}{part}", **metrics})
    return rows


TASKS: dict[str, Task] = {
    "zero_shot": Task(zero_shot, open_labelled, _check_labelled),
    "retrieval": Task(retrieval, open_captioned),
    "compositional": Task(compositional, open_captioned),
    "winoground": Task(winoground, lambda data: open_captioned(_of_pair(data, 0))),
    "winogavil": Task(winogavil, _open_candidates),
    "glyphs/letters": Task(partial(_glyph_letters, "test")),
    "glyphs/retrieval": Task(partial(_glyph_retrieval, "test")),
    "glyphs_validation/letters": Task(partial(_glyph_letters, "validation")),
    "glyphs_validation/retrieval": Task(partial(_glyph_retrieval, "validation")),
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


def run_task(name: str, embedders: Embedders, data: TaskData) -> list[Row]:
    """Returns the rows of one task: {"task", "dataset", metrics by name}."""
    return [{"task": name, **row} for row in TASKS[name].run(embedders, data)]
