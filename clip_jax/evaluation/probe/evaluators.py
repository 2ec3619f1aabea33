"""Evaluators of what labelled images teach a classifier of a model's features."""

import numpy as np
from scipy.special import stdtrit

from clip_jax.data.task_data import TaskData
from clip_jax.evaluation.embeddings import AnyEmbedders
from clip_jax.evaluation.metrics.classification import mean_per_class, top_k_hits
from clip_jax.evaluation.metrics.rows import Estimate, metrics_row
from clip_jax.evaluation.opening import Row
from clip_jax.evaluation.probe.examples import Learning, embed_examples, with_validation
from clip_jax.evaluation.probe.few_shot import SEEDS, fit_few_shot
from clip_jax.evaluation.probe.neighbours import NEIGHBOURS, NearestNeighbours
from clip_jax.evaluation.probe.sweep import fit_probe
from clip_jax.evaluation.zero_shot import METRIC, ROWS_AT_ONCE, evaluate_classifier


def linear_probe(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures a logistic regression (Radford et al. 2021, appendix A.3; see `probe.sweep`)."""
    learning = embed_examples(embedders, data)
    train, validation = with_validation(learning)
    probe = fit_probe(train, validation)
    sizes = {"num_train_images": len(train.labels), "num_validation_images": len(validation.labels)}
    return [_row(learning, probe.logits, {**sizes, "lambda": probe.sweep.best})]


def knn(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures the weighted vote of the nearest training images (see `probe.neighbours`)."""
    learning = embed_examples(embedders, data)
    neighbours = NearestNeighbours(learning.train, len(learning.classnames))
    return [_row(learning, neighbours.logits, {"neighbours": NEIGHBOURS})]


def few_shot(embedders: AnyEmbedders, data: TaskData) -> list[Row]:
    """Measures a logistic regression on few images a class, a row for each number of them.

    Values are means over seeds, with Student's interval, which is of the images that were drawn
    for training. See `probe.few_shot`.
    """
    learning = embed_examples(embedders, data)
    found = fit_few_shot(*with_validation(learning))
    features, labels = learning.test
    sizes = {"num_images": len(labels), "num_classes": len(learning.classnames)}
    rows = []
    for number, shots in enumerate(found.shots_T):
        fits = zip(found.weights_STDC[:, number], found.bias_STC[:, number], strict=True)
        hits_SN = np.stack([_hits(features, labels, *fit) for fit in fits])
        per_class = [mean_per_class(hits, labels).mean() for hits in hits_SN]
        metrics = {
            "accuracy_top1": over_seeds(hits_SN.mean(1)),
            "mean_per_class_accuracy": over_seeds(np.asarray(per_class)),
        }
        fields = {"dataset": f"{data.path}/{shots} shots", "shots": shots, "seeds": SEEDS}
        samples = {"labels": labels, f"{METRIC}accuracy_top1": hits_SN.mean(0)}
        row = {**learning.fields, **fields, **metrics_row(metrics), **sizes}
        rows.append({**row, "samples": {**samples, **learning.samples}})
    return rows


def _row(learning: Learning, logits_of, fields: Row) -> Row:
    metrics, samples = evaluate_classifier(*learning.test, len(learning.classnames), logits_of)
    return {**learning.fields, **fields, **metrics, "samples": {**samples, **learning.samples}}


def _hits(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, bias: np.ndarray
) -> np.ndarray:
    parts = [slice(start, start + ROWS_AT_ONCE) for start in range(0, len(labels), ROWS_AT_ONCE)]
    return np.concatenate(
        [top_k_hits(features[part] @ weights + bias, labels[part], 1) for part in parts]
    )


def over_seeds(values_S: np.ndarray) -> Estimate:
    """Returns the mean and Student's interval, within the values that a share can have."""
    mean, count = values_S.mean(), len(values_S)
    reach = stdtrit(count - 1, 0.975) * values_S.std(ddof=1) / np.sqrt(count)
    return Estimate(float(mean), float(max(mean - reach, 0)), float(min(mean + reach, 1)))
