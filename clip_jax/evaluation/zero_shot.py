"""Zero-shot classification with an ensemble of prompts.

Source: Radford et al. 2021, section 3.1, and the notebook Prompt_Engineering_for_ImageNet that
OpenAI released: a class's column of the classifier is the mean of its normalised template
embeddings, normalised again.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from clip_jax.arguments import text_list
from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.checks import as_labels
from clip_jax.evaluation.metrics.classification import top_k_hits
from clip_jax.evaluation.metrics.rows import metrics_row, per_class_estimate
from clip_jax.evaluation.prompts import Templates, get_templates

TEXTS_PER_CALL = 1024  # prompts that are embedded at once


def zero_shot_classifier(
    embed_text: Callable[[list[str]], np.ndarray],
    classnames: Iterable[str],
    templates: Templates = "openai",
) -> np.ndarray:
    """Builds a classifier from C class names and K templates: float32 (D, C), unit columns.

    Args:
      embed_text: list of n <= 1024 strings -> float32 (n, D); normalised again in any case.
      classnames: names for the templates' "{}"; any ordered iterable, but not a single string.
      templates: anything that `get_templates` takes.

    Raises:
      UserError: no class names, an invalid name or template, or an embedding that is zero or not
        finite.
    """
    templates = get_templates(templates)
    classnames = check_classnames(classnames)
    # A class name or template may hold other braces, which str.format would choke on.
    prompts = [t.replace("{}", name) for name in classnames for t in templates]
    sums: np.ndarray | None = None
    for start in range(0, len(prompts), TEXTS_PER_CALL):
        chunk = prompts[start : start + TEXTS_PER_CALL]
        embeds = np.asarray(embed_text(chunk), np.float64)
        if sums is None:
            sums = np.zeros((len(classnames), embeds.shape[-1]))
        class_of_prompt = np.arange(start, start + len(chunk)) // len(templates)
        np.add.at(sums, class_of_prompt, _normalised(embeds, chunk))
    assert sums is not None
    return _normalised(sums, classnames).T.astype(np.float32)


def check_classnames(classnames: Iterable[str]) -> list[str]:
    """Returns the names as a list.

    Raises `UserError` for a single string, an unordered collection, an invalid name or no names.
    """
    names = text_list(classnames, "classnames", "cat", allow_blank=False)
    if not names:
        raise UserError(f"classnames={classnames!r}: accepted is a list of at least one name")
    return names


def _normalised(embeds: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    norms = np.linalg.norm(embeds, axis=-1, keepdims=True)
    wrong = ~(np.isfinite(norms) & (norms > 0))[:, 0]
    if wrong.any():
        text = texts[int(np.flatnonzero(wrong)[0])]
        raise UserError(f"the text embedding of {text!r} is zero or not finite")
    return embeds / norms


def evaluate_zero_shot(
    embed_image: Callable[[np.ndarray], np.ndarray],
    embed_text: Callable[[list[str]], np.ndarray],
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    classnames: Iterable[str],
    templates: Templates = "openai",
    *,
    intervals: bool = False,
) -> dict[str, float]:
    """Measures the zero-shot accuracy of a model given as its two functions.

    Ties count in expectation over a random order of the tied classes, so a model whose scores are
    all equal gets exactly chance and not the share of class 0.

    Args:
      embed_image: uint8 (n, S, S, 3) -> float32 (n, D), L2-normalised.
      embed_text: list of n strings -> float32 (n, D), L2-normalised.
      batches: (images uint8 (n, S, S, 3), labels int (n,)) each; n may differ from batch to batch.
      classnames: name of class 0, 1, …, C − 1.
      templates: anything that `get_templates` takes.
      intervals: gives the limits of every metric's 95 % interval too.

    Returns:
      `accuracy_top1`, `accuracy_top5` (only with at least five classes),
      `mean_per_class_accuracy` (top-1, over the classes that occur), all in [0, 1], and the limits
      `NAME_low`, `NAME_high` of each; `num_images`, `num_classes`.

    Raises:
      UserError: no images, a label outside the classes, an embedding that is not finite.
    """
    classifier = zero_shot_classifier(embed_text, classnames, templates)
    num_classes, num_images = classifier.shape[1], 0
    top1, top5, all_labels = [], [], []
    for images, labels in batches:
        labels = as_labels(labels, len(images), num_classes)
        scores = np.asarray(embed_image(images), np.float32) @ classifier
        # A NaN compares false with everything and would count as a right answer.
        if not np.isfinite(scores).all():
            first = num_images + int(np.argmin(np.isfinite(scores).all(1)))
            raise UserError(f"the embedding of image {first} is not finite")
        top1.append(top_k_hits(scores, labels, 1))
        top5.append(top_k_hits(scores, labels, 5))
        all_labels.append(labels)
        num_images += len(labels)
    if not num_images:
        raise UserError("zero-shot evaluation: there are no images")
    hits, labels = np.concatenate(top1), np.concatenate(all_labels)
    metrics = {"accuracy_top1": hits, "mean_per_class_accuracy": per_class_estimate(hits, labels)}
    if num_classes >= 5:
        metrics["accuracy_top5"] = np.concatenate(top5)
    row = metrics_row(metrics)
    if not intervals:
        row = {name: row[name] for name in metrics}
    return {**row, "num_images": num_images, "num_classes": num_classes}
