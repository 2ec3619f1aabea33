"""Evaluators of labelled images: zero-shot classification, of one label an image or several."""

import functools
from collections.abc import Sequence

import numpy as np

from clip_jax.data.records import Source
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import Embedders, embed_source, embed_texts
from clip_jax.evaluation.labels import UNLABELLED, Labels, read_labels
from clip_jax.evaluation.opening import Row, dataset_fields, open_labelled
from clip_jax.evaluation.prompts import get_templates
from clip_jax.evaluation.prompts.class_prompts import read_class_prompts
from clip_jax.evaluation.zero_shot import (
    check_classnames,
    evaluate_zero_shot,
    prompts_classifier,
    prompts_of_classes,
)


def check_labelled(source: Source, data: TaskData) -> Sequence[str]:
    """Reads labels and templates; returns notes on how labels were read."""
    labels = read_labels(source, data)
    prompts_of(labels, data)
    return labels.notes


def prompts_of(labels: Labels, data: TaskData) -> list[tuple[str, ...]]:
    """Returns the prompts of each class: those of a .json file, or the templates with its names.

    Raises UserError: as `read_class_prompts` or `get_templates`.
    """
    if data.templates.lower().endswith(".json"):
        return read_class_prompts(data.templates, labels.classes)
    return prompts_of_classes(check_classnames(labels.prompt_names), get_templates(data.templates))


def zero_shot(embedders: Embedders, data: TaskData) -> list[Row]:
    """Measures zero-shot classification of labelled images (paper section 3.1)."""
    source = open_labelled(data)
    labels = read_labels(source, data)
    if not (labels.numbers != UNLABELLED).any():
        raise UserError(f"{data.path}: no image has a label")
    images = embed_source(embedders, source, data.batch_size)
    numbers = labels.numbers[images.records]
    used = numbers != UNLABELLED
    classifier = prompts_classifier(
        functools.partial(embed_texts, embedders), prompts_of(labels, data)
    )
    metrics, samples = evaluate_zero_shot(
        images.embeds[used], numbers[used], classifier, embedders.logit_scale
    )
    samples |= {"records": images.records[used], "classnames": np.asarray(labels.names)}
    row = {**dataset_fields(source, data), "templates": data.templates, "labels": labels.read_as}
    unlabelled = {"num_unlabelled": labels.num_unlabelled} if labels.num_unlabelled else {}
    return [{**row, **metrics, **unlabelled, "samples": samples}]
