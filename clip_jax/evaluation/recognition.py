"""Evaluators of labelled images: zero-shot classification, of one label an image or several."""

import functools
from collections.abc import Sequence

import numpy as np

from clip_jax.data.attribute_words import attribute_words
from clip_jax.data.records import Source
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import AnyEmbedders, embed_source, embed_texts
from clip_jax.evaluation.fairness.projection import projected, text_projection
from clip_jax.evaluation.groups import read_groups, rows_by_group, worst_group_row
from clip_jax.evaluation.labels import UNLABELLED, Labels, read_labels
from clip_jax.evaluation.metrics.paired import paired_difference
from clip_jax.evaluation.metrics.rows import Estimate, metrics_row
from clip_jax.evaluation.opening import Row, dataset_fields, open_labelled
from clip_jax.evaluation.prompts import get_templates
from clip_jax.evaluation.zero_shot import METRIC, evaluate_zero_shot, zero_shot_classifier

# Metrics that are also given by group, and before and after a projection.
_BY_GROUP = ("accuracy_top1", "accuracy_top5")


def check_labelled(source: Source, data: TaskData) -> Sequence[str]:
    """Reads labels, templates and groups; returns notes on how labels were read."""
    get_templates(data.templates)
    if data.group_key is not None:
        read_groups(source, data)
    if data.project_out is not None:
        attribute_words(data.project_out, "project_out")
    return read_labels(source, data).notes


def zero_shot(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures zero-shot classification of labelled images (paper section 3.1).

    With `group_key`, the first row has the accuracy of the worst group, and a row follows for each
    group. With `project_out`, it also has `NAME_projected` and `NAME_change`, after the projection.
    """
    source = open_labelled(data)
    labels = read_labels(source, data)
    if not (labels.numbers != UNLABELLED).any():
        raise UserError(f"{data.path}: no image has a label")
    groups = None if data.group_key is None else read_groups(source, data)
    images = embed_source(embedders, source, data.batch_size)
    used = labels.numbers[images.records] != UNLABELLED
    records = images.records[used]
    embed = functools.partial(embed_texts, embedders)
    templates = get_templates(data.templates)
    classifier = zero_shot_classifier(embed, labels.prompt_names, templates)
    evaluated = (images.embeds[used], labels.numbers[records])
    metrics, samples = evaluate_zero_shot(*evaluated, classifier, embedders.class_logits)
    shares = _shares(samples)
    if data.project_out is not None:
        projection = text_projection(embed, data.project_out, _first_names(labels), templates[0])
        after = projected(projection, classifier.T).T
        found = _shares(evaluate_zero_shot(*evaluated, after, embedders.class_logits)[1])
        metrics |= _change(shares, found)
        shares |= {f"{name}_projected": values for name, values in found.items()}
    samples |= {"records": records, "classnames": np.asarray(labels.names)}
    row = {**dataset_fields(source, data), "templates": data.templates, "labels": labels.read_as}
    unlabelled = {"num_unlabelled": labels.num_unlabelled} if labels.num_unlabelled else {}
    by_group = []
    if groups is not None:
        samples |= {"group": groups[records]}
        metrics |= worst_group_row(shares, groups[records])
        by_group = rows_by_group(row, str(data.group_key), shares, groups[records])
    return [{**row, **metrics, **unlabelled, "samples": samples}, *by_group]


def _shares(samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    keys = {name: f"{METRIC}{name}" for name in _BY_GROUP}
    return {name: samples[key] for name, key in keys.items() if key in samples}


def _first_names(labels: Labels) -> list[str]:
    return [names[0] for names in labels.prompt_names]


def _change(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the metrics after a projection, and their paired differences from those before."""
    changes = {f"{x}_change": paired_difference(values, before[x]) for x, values in after.items()}
    estimates = {name: Estimate(*change[:3]) for name, change in changes.items()}
    return metrics_row({f"{x}_projected": values for x, values in after.items()} | estimates)
