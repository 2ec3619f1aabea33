"""Evaluators of robustness: zero-shot accuracy on corrupted and on small images."""

import functools

import numpy as np

from clip_jax.data.task_data import TaskData
from clip_jax.evaluation.embeddings import AnyEmbedders, Ensemble, changed
from clip_jax.evaluation.metrics.rows import metrics_row
from clip_jax.evaluation.opening import Row
from clip_jax.evaluation.recognition import Recognition, open_recognition, recognise
from clip_jax.evaluation.zero_shot import METRIC
from clip_jax.images.corruptions import KINDS, SEVERITIES, corrupt, shrink

_TOP1 = f"{METRIC}accuracy_top1"
_PARTS = (0.125, 0.25, 0.375, 0.5, 0.75)  # of the model's image size


def corruptions(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures zero-shot accuracy under the common corruptions (Hendrycks & Dietterich 2019).

    Returns a row for each of the 15 kinds, the mean over five severities, and first one of the mean
    over all, with `clean_accuracy_top1` and `relative_accuracy`, its share of the clean one. The 75
    passes over the images take 75 times as long as one.
    """
    opened = open_recognition(embedders, data)
    clean = recognise(embedders, opened, data)[0]
    hits = {}
    for kind in KINDS:
        of_kind = []
        for severity in SEVERITIES:
            function = functools.partial(corrupt, kind=kind, severity=severity)
            spoiled = changed(embedders, f"{kind} {severity}", function)
            of_kind.append(_hits(spoiled, opened, data))
        hits[kind] = np.mean(of_kind, axis=0)
    summary = _row(clean, "corruptions", np.mean(list(hits.values()), axis=0))
    accuracy = clean["accuracy_top1"]
    summary["clean_accuracy_top1"] = accuracy
    if accuracy:
        summary["relative_accuracy"] = summary["accuracy_top1"] / accuracy
    return [summary, *(_row(clean, kind, values) for kind, values in hits.items())]


def resolutions(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures zero-shot accuracy on images that were shrunk and enlarged again, by size."""
    opened = open_recognition(embedders, data)
    clean = recognise(embedders, opened, data)[0]
    transforms = embedders.transform if isinstance(embedders, Ensemble) else (embedders.transform,)
    side = min(transform.image_size for transform in transforms)
    rows = [_row(clean, f"{side}px", clean["samples"][_TOP1])]
    for size in sorted({max(1, round(side * part)) for part in _PARTS}, reverse=True):
        small = changed(embedders, f"shrunk {size}", functools.partial(shrink, size=size))
        rows.append(_row(clean, f"{size}px", _hits(small, opened, data)))
    return rows


def _hits(embedders: AnyEmbedders, opened: Recognition, data: TaskData) -> np.ndarray:
    return np.asarray(recognise(embedders, opened, data)[0]["samples"][_TOP1])


def _row(clean: Row, name: str, hits: np.ndarray) -> Row:
    """Returns the row of one change of the images, from its hits (N,)."""
    kept: Row = {key: clean[key] for key in ("split", "templates", "num_images") if key in clean}
    samples = {_TOP1: hits, "records": clean["samples"]["records"]}
    metrics = metrics_row({"accuracy_top1": hits})
    return {"dataset": f"{clean['dataset']}/{name}", **kept, **metrics, "samples": samples}
