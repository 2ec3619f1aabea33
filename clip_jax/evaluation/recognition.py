"""Evaluators of labelled images: zero-shot classification, of one label an image or several."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clip_jax.data.attribute_words import attribute_words
from clip_jax.data.records import Source
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import AnyEmbedders, Embedders, embed_source, embed_texts
from clip_jax.evaluation.ensemble import Method, Mixture, fit_mixture
from clip_jax.evaluation.fairness.projection import projected, text_projection
from clip_jax.evaluation.groups import (
    array_of,
    read_groups,
    record_fields,
    rows_by_group,
    worst_group_row,
)
from clip_jax.evaluation.labels import UNLABELLED, Labels, read_labels
from clip_jax.evaluation.metrics.multilabel import mean_average_precision
from clip_jax.evaluation.metrics.paired import paired_difference
from clip_jax.evaluation.metrics.rows import Estimate, metrics_row
from clip_jax.evaluation.opening import Row, dataset_fields, open_labelled
from clip_jax.evaluation.prompts import get_classes, get_templates
from clip_jax.evaluation.prompts.class_prompts import read_class_prompts
from clip_jax.evaluation.zero_shot import (
    METRIC,
    check_classnames,
    evaluate_zero_shot,
    prompts_classifier,
    prompts_of_classes,
    zero_shot_classifier,
)

# Metrics that are also given by group, and before and after a projection.
_BY_GROUP = ("accuracy_top1", "accuracy_top5")


class Recognition(NamedTuple):
    """Labelled images that are open, and the classifier of their classes."""

    source: Source
    labels: Labels
    classifier: np.ndarray  # float32 (D, C)


def check_labelled(source: Source, data: TaskData) -> Sequence[str]:
    """Reads labels, prompts and groups; returns notes on how labels were read."""
    if data.group_key is not None:
        read_groups(source, data)
    if data.project_out is not None:
        attribute_words(data.project_out, "project_out")
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


def open_recognition(embedders: AnyEmbedders, data: TaskData) -> Recognition:
    """Opens labelled images, and embeds the prompts of their classes."""
    source = open_labelled(data)
    labels = read_labels(source, data)
    if not (labels.numbers != UNLABELLED).any():
        raise UserError(f"{data.path}: no image has a label")
    embed = functools.partial(embed_texts, embedders)
    return Recognition(source, labels, prompts_classifier(embed, prompts_of(labels, data)))


def embed_labelled(
    embedders: AnyEmbedders, source: Source, labels: Labels, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the records that have an image and a label, int64 (N,), and embeddings (N, D)."""
    images = embed_source(embedders, source, batch_size)
    used = labels.numbers[images.records] != UNLABELLED
    return images.records[used], images.embeds[used]


def recognise(
    embedders: AnyEmbedders, opened: Recognition, data: TaskData
) -> tuple[Row, np.ndarray]:
    """Classifies the labelled images; returns the row, with "samples", and their embeddings."""
    source, labels, classifier = opened
    records, embeds = embed_labelled(embedders, source, labels, data.batch_size)
    metrics, samples = evaluate_zero_shot(
        embeds, labels.numbers[records], classifier, embedders.class_logits
    )
    samples |= {"records": records, "classnames": np.asarray(labels.names)}
    row = {**dataset_fields(source, data), "templates": data.templates, "labels": labels.read_as}
    unlabelled = {"num_unlabelled": labels.num_unlabelled} if labels.num_unlabelled else {}
    return {**row, **metrics, **unlabelled, "samples": samples}, embeds


def fit_ensemble(members: Sequence[Embedders], data: TaskData, method: Method) -> Mixture:
    """Fits the weights of an ensemble, and its members' logit scales, on labelled images.

    The images must not be those of the test. Raises UserError: they cannot be used.
    """
    cosines, labels = [], np.zeros(0, np.int64)
    for member in members:
        opened = open_recognition(member, data)
        row, embeds = recognise(member, opened, data)
        cosines.append(embeds @ opened.classifier)
        labels = row["samples"]["labels"]
    return fit_mixture(cosines, labels, [member.logit_scale for member in members], method)


def zero_shot(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures zero-shot classification of labelled images (paper section 3.1).

    With `group_key`, the first row has the accuracy of the worst group, and a row follows for each
    group. With `project_out`, it also has `NAME_projected` and `NAME_change`, after the projection.
    """
    opened = open_recognition(embedders, data)
    groups = None if data.group_key is None else read_groups(opened.source, data)
    row, embeds = recognise(embedders, opened, data)
    samples, shares = row["samples"], _shares(row["samples"])
    if data.project_out is not None:
        names = [names[0] for names in opened.labels.prompt_names]
        template = "{}" if data.templates.endswith(".json") else get_templates(data.templates)[0]
        embed = functools.partial(embed_texts, embedders)
        projection = text_projection(embed, data.project_out, names, template)
        after = projected(projection, opened.classifier.T).T
        found = evaluate_zero_shot(embeds, samples["labels"], after, embedders.class_logits)
        changed = _shares(found[1])
        row |= _change(shares, changed)
        shares |= {f"{name}_projected": values for name, values in changed.items()}
    if groups is None:
        return [row]
    fields: Row = {
        key: row[key] for key in ("dataset", "split", "templates", "labels") if key in row
    }
    in_group = groups[samples["records"]]
    samples["group"] = in_group
    row |= worst_group_row(shares, in_group)
    return [row, *rows_by_group(fields, str(data.group_key), shares, in_group)]


def multilabel(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures how classes rank the images of which each may have several: mean average precision,
    also by VOC's interpolation at 11 points of recall."""
    source = open_labelled(data)
    names = _classes(data)
    targets = read_targets(source, data.label_key, len(names))
    images = embed_source(embedders, source, data.batch_size)
    embed = functools.partial(embed_texts, embedders)
    classifier = zero_shot_classifier(embed, names, get_templates(data.templates))
    scores, targets = embedders.class_logits(images.embeds, classifier), targets[images.records]
    contributions = {
        "mean_average_precision": mean_average_precision(scores, targets),
        "mean_average_precision_11_points": mean_average_precision(scores, targets, "11_points"),
    }
    samples = {f"{METRIC}{name}": values for name, values in contributions.items()}
    sizes = {"num_images": len(scores), "num_classes": scores.shape[1]}
    row = {**dataset_fields(source, data), "templates": data.templates}
    samples |= {"records": images.records}
    return [{**row, **metrics_row(contributions), **sizes, "samples": samples}]


def check_multilabel(source: Source, data: TaskData) -> Sequence[str]:
    """Reads class names, templates and every image's labels."""
    get_templates(data.templates)
    read_targets(source, data.label_key, len(_classes(data)))
    return ()


def _classes(data: TaskData) -> list[tuple[str, ...]]:
    if data.classnames is None:
        raise UserError("classnames=None: several labels an image need a file of class names")
    return [each.names for each in get_classes(data.classnames)]


def read_targets(source: Source, key: str, num_classes: int) -> np.ndarray:
    """Reads the classes of each image of a multi-label set: bool (N, C).

    A label is a `.npy` of a number a class, or one or several class numbers.

    Raises UserError that names the record: a label is missing, or is neither.
    """
    targets = np.zeros((len(source), num_classes), bool)
    for index, value in record_fields(source, key):
        if isinstance(value, bytes):
            marks = array_of(value, source.key(index))
            if marks.shape != (num_classes,):
                raise UserError(
                    f"record {source.key(index)}: its {key} has shape {marks.shape}; expected is"
                    f" ({num_classes},), a number a class"
                )
            targets[index] = marks > 0
            continue
        numbers = np.atleast_1d(np.asarray(value))
        if numbers.dtype.kind not in "iu" or not ((numbers >= 0) & (numbers < num_classes)).all():
            raise UserError(
                f"record {source.key(index)}: {key}={value!r}: accepted are class numbers, 0 to"
                f" {num_classes - 1}"
            )
        targets[index, numbers] = True
    return targets


def _shares(samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    keys = {name: f"{METRIC}{name}" for name in _BY_GROUP}
    return {name: samples[key] for name, key in keys.items() if key in samples}


def _change(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the metrics after a projection, and their paired differences from those before."""
    changes = {f"{x}_change": paired_difference(values, before[x]) for x, values in after.items()}
    estimates = {name: Estimate(*change[:3]) for name, change in changes.items()}
    return metrics_row({f"{x}_projected": values for x, values in after.items()} | estimates)
