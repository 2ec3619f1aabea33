"""Zero-shot classification with an ensemble of prompts.

Source: Radford et al. 2021, section 3.1, and the notebook Prompt_Engineering_for_ImageNet that
OpenAI released: a class's column of the classifier is the mean of its normalised template
embeddings, normalised again.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from clip_jax.arguments import text_list
from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.calibration import calibration_error, judge_predictions
from clip_jax.evaluation.metrics.checks import as_labels
from clip_jax.evaluation.metrics.classification import macro_f1, mean_per_class, top_k_hits
from clip_jax.evaluation.metrics.multilabel import roc_auc
from clip_jax.evaluation.metrics.rows import mean_estimate, metrics_row, per_class_estimate
from clip_jax.evaluation.prompts import Templates, get_templates

# The names of the classes; several names of one class are a list or a tuple.
Classes = Iterable[str | Sequence[str]]

TEXTS_PER_CALL = 1 << 14  # prompts that are embedded at once
ROWS_AT_ONCE = 4096  # images whose scores are held at once
METRIC, GROUPS = "metric/", "groups/"  # prefixes of a row's arrays, before the metric's name


def zero_shot_classifier(
    embed_text: Callable[[list[str]], np.ndarray],
    classnames: Classes,
    templates: Templates = "openai",
) -> np.ndarray:
    """Builds a classifier from C classes and K templates: float32 (D, C), unit columns.

    Args:
      embed_text: list of n strings -> float32 (n, D); normalised again in any case.
      classnames: names for the templates' "{}"; any ordered iterable, but not a single string. A
        class with several names, such as ("happy", "smiling"), has the mean over all its prompts.
      templates: anything that `get_templates` takes.

    Raises:
      UserError: no class names, an invalid name or template, or an embedding that is zero or not
        finite.
    """
    templates = get_templates(templates)
    classes = check_classnames(classnames)
    return prompts_classifier(embed_text, prompts_of_classes(classes, templates))


def prompts_of_classes(
    classes: Sequence[Sequence[str]], templates: Sequence[str]
) -> list[tuple[str, ...]]:
    """Returns the prompts of each class: every template with every name."""
    # A class name or template may hold other braces, which str.format would choke on.
    return [tuple(t.replace("{}", name) for name in names for t in templates) for names in classes]


def prompts_classifier(
    embed_text: Callable[[list[str]], np.ndarray], prompts: Sequence[Sequence[str]]
) -> np.ndarray:
    """Builds a classifier from the prompts of C classes, at least one each: float32 (D, C).

    `embed_text` and the errors are those of `zero_shot_classifier`.
    """
    texts = [text for of_class in prompts for text in of_class]
    class_of_text = np.repeat(range(len(prompts)), [len(of_class) for of_class in prompts])
    sums: np.ndarray | None = None
    for start in range(0, len(texts), TEXTS_PER_CALL):
        chunk = texts[start : start + TEXTS_PER_CALL]
        embeds = np.asarray(embed_text(chunk), np.float64)
        if sums is None:
            sums = np.zeros((len(prompts), embeds.shape[-1]))
        np.add.at(sums, class_of_text[start : start + len(chunk)], unit_rows(embeds, chunk))
    assert sums is not None
    return unit_rows(sums, [of_class[0] for of_class in prompts]).T.astype(np.float32)


def check_classnames(classnames: Classes) -> list[tuple[str, ...]]:
    """Returns the names of each class.

    Raises `UserError` for a single string, an unordered collection, an invalid name or no names.
    """
    if isinstance(classnames, list | tuple) and any(
        isinstance(x, list | tuple) for x in classnames
    ):
        # A published name may be blank: its prompt is the rest of the template.
        lists = (list(x) if isinstance(x, list | tuple) else [x] for x in classnames)
        classes = [tuple(text_list(x, f"classnames[{n}]", "cat")) for n, x in enumerate(lists)]
    else:
        classes = [(x,) for x in text_list(classnames, "classnames", "cat", allow_blank=False)]
    if not all(classes) or not classes:
        raise UserError(f"classnames={classnames!r}: accepted is a list of at least one name")
    return classes


def unit_rows(embeds: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Divides the embeddings (N, D) of N texts by their lengths.

    Raises `UserError` that names a text whose embedding is zero or not finite.
    """
    norms = np.linalg.norm(embeds, axis=-1, keepdims=True)
    wrong = ~(np.isfinite(norms) & (norms > 0))[:, 0]
    if wrong.any():
        text = texts[int(np.flatnonzero(wrong)[0])]
        raise UserError(f"the text embedding of {text!r} is zero or not finite")
    return embeds / norms


def evaluate_zero_shot(
    image_embeds: np.ndarray,
    labels: np.ndarray,
    classifier: np.ndarray,
    class_logits: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Measures a classifier of cosines: returns metrics and arrays as `evaluate_classifier` does.

    Args:
      image_embeds: float32 (N, D), L2-normalised.
      labels: int (N,), from 0 to C − 1.
      classifier: float32 (D, C), such as `zero_shot_classifier`'s.
      class_logits: (n, D), (D, C) -> (n, C): logits of some images, such as
        `Embedders.class_logits`.

    Raises:
      UserError: no images, or a label outside the classes.
    """

    def logits_of(embeds: np.ndarray) -> np.ndarray:
        return class_logits(embeds, classifier)

    return evaluate_classifier(image_embeds, labels, classifier.shape[1], logits_of)


def evaluate_classifier(
    features: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    logits_of: Callable[[np.ndarray], np.ndarray],
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Measures the accuracy of a classifier of images, and its calibration.

    Ties count in expectation over a random order of the tied classes, so a model whose scores are
    all equal gets exactly chance and not the share of class 0.

    Args:
      features: float (N, D).
      labels: int (N,), from 0 to C − 1.
      num_classes: C.
      logits_of: (n, D) -> (n, C): logits of some images.

    Returns:
      The metrics, each with its 95 % limits `NAME_low` and `NAME_high`: `accuracy_top1`,
      `accuracy_top5` and `mean_top1_top5` (only with at least five classes),
      `mean_per_class_accuracy` and `macro_f1` (over the classes that occur), `roc_auc` (of two
      classes),
      `expected_calibration_error`, `adaptive_calibration_error`, `brier_score`, `log_loss` (nats);
      `num_images`, `num_classes`.
      The arrays behind them, (N,) each: `labels`, `predictions`, `confidence`, and the
      contributions to each metric under `METRIC` and its name.

    Raises:
      UserError: no images, or a label outside the classes.
    """
    if not len(features):
        raise UserError("evaluation of a classifier: there are no images")
    labels = as_labels(labels, len(features), num_classes)
    parts, margins = [], []
    for start in range(0, len(labels), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        logits = logits_of(features[rows])
        margins.append(logits[:, -1] - logits[:, 0])
        judged = judge_predictions(logits, labels[rows])
        parts.append((*judged, top_k_hits(logits, labels[rows], 5), logits.argmax(1)))
    confidence, top1, loss, brier, top5, predictions = map(np.concatenate, zip(*parts, strict=True))
    shares = {
        "accuracy_top1": top1,
        "mean_per_class_accuracy": mean_per_class(top1, labels),
        "macro_f1": macro_f1(predictions, labels),
        "expected_calibration_error": calibration_error(confidence, top1),
        "adaptive_calibration_error": calibration_error(confidence, top1, equal_mass=True),
        "brier_score": brier,
    }
    if num_classes >= 5:
        shares |= {"accuracy_top5": top5, "mean_top1_top5": (top1 + top5) / 2}
    if num_classes == 2 and len(np.unique(labels)) == 2:
        shares["roc_auc"] = roc_auc(np.concatenate(margins), labels)
    per_class = {"mean_per_class_accuracy": per_class_estimate(top1, labels)}
    row = metrics_row({**shares, **per_class, "log_loss": mean_estimate(loss)})
    contributions = {f"{METRIC}{name}": values for name, values in shares.items()}
    return (
        {**row, "num_images": len(labels), "num_classes": num_classes},
        {"labels": labels, "predictions": predictions, "confidence": confidence, **contributions},
    )
