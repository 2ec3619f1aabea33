"""Zero-shot classification with an ensemble of prompts.

Source: Radford et al. 2021, section 3.1, and the notebook Prompt_Engineering_for_ImageNet that
OpenAI released: a class's column of the classifier is the mean of its normalised template
embeddings, normalised again.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from clip_jax.arguments import text_list
from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import Templates, get_templates

# The names of the classes; several names of one class are a list or a tuple.
Classes = Iterable[str | Sequence[str]]

TEXTS_PER_CALL = 1024  # prompts that are embedded at once


def zero_shot_classifier(
    embed_text: Callable[[list[str]], np.ndarray],
    classnames: Classes,
    templates: Templates = "openai",
) -> np.ndarray:
    """Builds a classifier from C classes and K templates: float32 (D, C), unit columns.

    Args:
      embed_text: list of n <= 1024 strings -> float32 (n, D); normalised again in any case.
      classnames: names for the templates' "{}"; any ordered iterable, but not a single string. A
        class with several names, such as ("happy", "smiling"), has the mean over all its prompts.
      templates: anything that `get_templates` takes.

    Raises:
      UserError: no class names, an invalid name or template, or an embedding that is zero or not
        finite.
    """
    templates = get_templates(templates)
    classes = check_classnames(classnames)
    # A class name or template may hold other braces, which str.format would choke on.
    prompts = [t.replace("{}", name) for names in classes for name in names for t in templates]
    class_of_prompt = np.repeat(range(len(classes)), [len(x) * len(templates) for x in classes])
    sums: np.ndarray | None = None
    for start in range(0, len(prompts), TEXTS_PER_CALL):
        chunk = prompts[start : start + TEXTS_PER_CALL]
        embeds = np.asarray(embed_text(chunk), np.float64)
        if sums is None:
            sums = np.zeros((len(classes), embeds.shape[-1]))
        np.add.at(sums, class_of_prompt[start : start + len(chunk)], _normalised(embeds, chunk))
    assert sums is not None
    return _normalised(sums, [names[0] for names in classes]).T.astype(np.float32)


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
    classnames: Classes,
    templates: Templates = "openai",
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

    Returns:
      `accuracy_top1`, `accuracy_top5` (only with at least five classes),
      `mean_per_class_accuracy` (top-1, over the classes that occur), all in [0, 1];
      `num_images`, `num_classes`.

    Raises:
      UserError: no images, a label outside the classes, an embedding that is not finite.
    """
    classifier = zero_shot_classifier(embed_text, classnames, templates)
    num_classes, num_images = classifier.shape[1], 0
    top1, top5, all_labels = [], [], []
    for images, labels in batches:
        labels = _check_labels(labels, len(images), num_classes)
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
    metrics = {
        "accuracy_top1": float(hits.mean()),
        "mean_per_class_accuracy": _mean_per_class(hits, labels),
        "num_images": num_images,
        "num_classes": num_classes,
    }
    if num_classes >= 5:
        metrics["accuracy_top5"] = float(np.concatenate(top5).mean())
    return metrics


def _mean_per_class(hits: np.ndarray, labels: np.ndarray) -> float:
    """Averages the mean hits of each class over the classes that occur."""
    images_of_class = np.bincount(labels)
    hits_of_class = np.bincount(labels, weights=hits)
    present = images_of_class > 0
    return float((hits_of_class[present] / images_of_class[present]).mean())


def top_k_hits(scores: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """float (N, C), int (N,) -> float64 (N,): probability that the label is among the top k.

    It lies strictly between 0 and 1 only if other classes tie with the label's score.
    """
    of_label = np.take_along_axis(scores, labels[:, None], axis=1)
    above = (scores > of_label).sum(1)
    tied = (scores == of_label).sum(1)  # the label itself is one of them
    return np.clip((k - above) / tied, 0.0, 1.0)


def _check_labels(labels, num_images: int, num_classes: int) -> np.ndarray:
    array = np.asarray(labels)
    if array.shape != (num_images,) or array.dtype.kind not in "iu":
        raise UserError(
            f"labels {array.dtype} {array.shape}: accepted are ({num_images},) integers"
        )
    wrong = (array < 0) | (array >= num_classes)
    if wrong.any():
        raise UserError(
            f"label {array[wrong][0]}: accepted is 0 to {num_classes - 1}, a class each"
        )
    return array.astype(np.int64)
