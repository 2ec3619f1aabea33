"""Evaluators of labelled images: zero-shot classification, of one label an image or several."""

import functools
from collections.abc import Sequence

import numpy as np

from clip_jax.data.records import Source
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import AnyEmbedders, embed_source, embed_texts
from clip_jax.evaluation.labels import UNLABELLED, read_labels
from clip_jax.evaluation.opening import Row, dataset_fields, open_labelled
from clip_jax.evaluation.prompts import get_templates
from clip_jax.evaluation.zero_shot import evaluate_zero_shot, zero_shot_classifier


def check_labelled(source: Source, data: TaskData) -> Sequence[str]:
    """Reads labels and templates; returns notes on how labels were read."""
    get_templates(data.templates)
    return read_labels(source, data).notes


def zero_shot(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures zero-shot classification of labelled images (paper section 3.1)."""
    source = open_labelled(data)
    labels = read_labels(source, data)
    if not (labels.numbers != UNLABELLED).any():
        raise UserError(f"{data.path}: no image has a label")
    images = embed_source(embedders, source, data.batch_size)
    numbers = labels.numbers[images.records]
    used = numbers != UNLABELLED
    classifier = zero_shot_classifier(
        functools.partial(embed_texts, embedders),
        labels.prompt_names,
        get_templates(data.templates),
    )
    metrics, samples = evaluate_zero_shot(
        images.embeds[used], numbers[used], classifier, embedders.class_logits
    )
    samples |= {"records": images.records[used], "classnames": np.asarray(labels.names)}
    row = {**dataset_fields(source, data), "templates": data.templates, "labels": labels.read_as}
    unlabelled = {"num_unlabelled": labels.num_unlabelled} if labels.num_unlabelled else {}
    return [{**row, **metrics, **unlabelled, "samples": samples}]
