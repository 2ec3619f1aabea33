"""What can be measured by name: each task opens its data and returns one row of metrics.

A new evaluator is a function here and a line in `TASKS`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from clip_jax.data import glyphs
from clip_jax.data.evaluation_batches import evaluation_batches
from clip_jax.data.image import ImageTransform
from clip_jax.data.records import Source
from clip_jax.data.sources import open_source
from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import get_templates, read_classnames
from clip_jax.evaluation.retrieval import retrieval_recalls
from clip_jax.evaluation.zero_shot import evaluate_zero_shot

Row = dict[str, Any]
Embed = Callable[[Any], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Embedders:
    """All that an evaluation may know of a model."""

    embed_image: Embed  # uint8 (N, S, S, 3) -> float32 (N, D), rows of length 1
    embed_text: Embed  # list[str] -> float32 (N, D), rows of length 1
    transform: ImageTransform  # anything -> uint8 (S, S, 3)


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Which images a task reads, and how it names their classes."""

    path: str = ""
    format: str = "auto"
    image_column: str | None = None
    caption_column: str | None = None
    caption_template: str = "a photo of a {}."
    label_key: str = "class"
    classnames: str | None = None
    templates: str = "openai"
    batch_size: int = 256


def _open(data: TaskData, task: str) -> Source:
    if not data.path:
        raise UserError(f"task {task!r}: needs images; give --data (config: evaluation.path)")
    return open_source(
        data.path,
        data.format,
        image_column=data.image_column,
        caption_column=data.caption_column,
        caption_template=data.caption_template,
    )


def _labels(source: Source, data: TaskData) -> tuple[np.ndarray, tuple[str, ...]]:
    """A class number a record, and the class names. Raises `UserError` where a record has none."""
    raw = []
    for index in range(len(source)):
        metadata = source.metadata(index)
        if data.label_key not in metadata:
            raise UserError(
                f"record {source.key(index)}: no metadata field {data.label_key!r} for the label "
                f"(has: {', '.join(sorted(metadata)) or 'none'}); give --label_key "
                "(config: evaluation.label_key)"
            )
        raw.append(metadata[data.label_key])
    are_numbers = all(isinstance(x, int) or (isinstance(x, str) and x.isdigit()) for x in raw)
    if data.classnames is None:
        if are_numbers:
            raise UserError(
                f"label_key={data.label_key!r}: holds class numbers; give their names, one a line, "
                "by --classnames (config: evaluation.classnames)"
            )
        names = tuple(sorted({str(x) for x in raw}))
    else:
        names = read_classnames(data.classnames)
    if are_numbers:
        labels = np.asarray([int(x) for x in raw])
        if labels.size and labels.max() >= len(names):
            raise UserError(
                f"{data.classnames}: has {len(names)} names, but a label is {labels.max()}"
            )
        return labels, names
    number = {name: index for index, name in enumerate(names)}
    unknown = sorted({str(x) for x in raw} - number.keys())
    if unknown:
        raise UserError(f"{data.classnames}: does not have the class {unknown[0]!r} of the data")
    return np.asarray([number[str(x)] for x in raw]), names


def zero_shot(embedders: Embedders, data: TaskData) -> list[Row]:
    """Zero-shot classification of labelled images (paper section 3.1)."""
    source = _open(data, "zero_shot")
    labels, names = _labels(source, data)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for indices, images in evaluation_batches(source, embedders.transform, data.batch_size):
            yield images, labels[indices]

    metrics = evaluate_zero_shot(
        embedders.embed_image, embedders.embed_text, batches(), names, get_templates(data.templates)
    )
    return [{"dataset": data.path, "templates": data.templates, **metrics}]


def retrieval(embedders: Embedders, data: TaskData) -> list[Row]:
    """Recall at 1, 5, 10 both ways; a caption that occurs for several images is right for each."""
    source = _open(data, "retrieval")
    embeds, used = [], []
    for indices, images in evaluation_batches(source, embedders.transform, data.batch_size):
        embeds.append(embedders.embed_image(images))
        used.extend(indices.tolist())
    if not embeds:
        raise UserError(f"{data.path}: no image can be decoded")
    captions = [source.captions(index) for index in used]
    texts = [text for group in captions for text in group]
    image_of_text = np.repeat(np.arange(len(used)), [len(group) for group in captions])
    metrics = retrieval_recalls(
        np.concatenate(embeds), embedders.embed_text(texts), image_of_text, texts=texts
    )
    return [{"dataset": data.path, **metrics}]


def _glyph_letters(embedders: Embedders, split: str) -> list[Row]:
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


def _glyph_retrieval(embedders: Embedders, split: str) -> list[Row]:
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


TASKS: dict[str, Callable[[Embedders, TaskData], list[Row]]] = {
    "zero_shot": zero_shot,
    "retrieval": retrieval,
    "glyphs/letters": lambda embedders, _: _glyph_letters(embedders, "test"),
    "glyphs/retrieval": lambda embedders, _: _glyph_retrieval(embedders, "test"),
    "glyphs_validation/letters": lambda embedders, _: _glyph_letters(embedders, "validation"),
    "glyphs_validation/retrieval": lambda embedders, _: _glyph_retrieval(embedders, "validation"),
}


def check_tasks(tasks: tuple[str, ...], data: TaskData, key: str) -> None:
    """Opens what the tasks will read, so that a mistake shows before the work and not after it.

    Raises `UserError` for a name that is not a task, and for data, labels, class names or templates
    that a task could not use. `key` is where the tasks were named.
    """
    for task in tasks:
        if task not in TASKS:
            raise UserError(f"{key}={task!r}: choose of {', '.join(TASKS)}")
    if "zero_shot" in tasks:
        _labels(_open(data, "zero_shot"), data)
        get_templates(data.templates)
    elif "retrieval" in tasks:
        _open(data, "retrieval")


def run_task(task: str, embedders: Embedders, data: TaskData) -> list[Row]:
    """The rows of one task: {"task", "dataset", metrics by name}."""
    return [{"task": task, **row} for row in TASKS[task](embedders, data)]
