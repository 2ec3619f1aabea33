"""clip-benchmark's own metrics of given embeddings, in the environment of `make oracle`.

    python clip_benchmark_metrics.py SETTINGS.npz RESULTS.json

An array of SETTINGS is called NUMBER/KIND/NAME; RESULTS is {NUMBER: {metric: value}}. Models and
data are stand-ins that return the embeddings; where `orders` are given, permutations of the classes
or of the gallery, a value is the mean over all of them.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from clip_benchmark.metrics import (
    image_caption_selection,
    zeroshot_classification,
    zeroshot_retrieval,
)

# It makes a float of an array of one number, which NumPy 2.4 refuses.
zeroshot_classification.float = lambda x: x.item() if isinstance(x, np.ndarray) else float(x)

CPU: dict[str, Any] = {"device": "cpu", "amp": False}


class Batches(list):
    """A loader, and the data set that it asks for its classes."""

    def __init__(self, batches: list[Any], classes: list[str] | None = None):
        super().__init__(batches)
        self.dataset = SimpleNamespace(classes=classes)


def model_of(texts: np.ndarray) -> SimpleNamespace:
    """Images are their own embeddings; a text is the number of its row."""
    table = torch.tensor(texts)
    return SimpleNamespace(
        encode_image=lambda images: images.flatten(1), encode_text=lambda rows: table[rows]
    )


def tokenizer(texts: list[str]) -> torch.Tensor:
    """'12' -> 12; '12/7' is row 7 of template 12, of a table of 1,000 rows a template."""
    numbers = [[int(part) for part in text.split("/")] for text in texts]
    return torch.tensor([n[0] if len(n) == 1 else 1000 * n[0] + n[1] for n in numbers])


def classification(
    images: np.ndarray, classes: np.ndarray, labels: np.ndarray, order: np.ndarray
) -> dict[str, float]:
    """Metrics of images (N, D), prompts (K, C, D), labels (N,) or (N, C), classes in an order."""
    table = np.zeros((1000 * len(classes), images.shape[1]), np.float32)
    for template, embeds in enumerate(classes):
        table[1000 * template : 1000 * template + embeds.shape[0]] = embeds
    names = [str(c) for c in order]
    labels = labels[:, order] if labels.ndim == 2 else np.argsort(order)[labels]
    batches = Batches([(torch.tensor(images), torch.tensor(labels))], names)
    templates = [f"{template}/{{c}}" for template in range(len(classes))]
    return zeroshot_classification.evaluate(
        model_of(table), batches, tokenizer, names, templates, **CPU
    )


def average_precisions(images: np.ndarray, classes: np.ndarray, labels: np.ndarray) -> list[float]:
    """Average precision of every class."""
    scores = torch.tensor(images) @ torch.tensor(classes[0]).T
    return zeroshot_classification.average_precision_per_class(
        scores, torch.tensor(labels)
    ).tolist()


def retrieval(
    images: np.ndarray, texts: np.ndarray, image_of_text: np.ndarray, ks: np.ndarray
) -> dict[str, float]:
    """Recalls of images (N, D) and their texts (T, D)."""
    half = len(images) // 2 + 1
    captions = [[str(t) for t in np.flatnonzero(image_of_text == i)] for i in range(len(images))]
    parts = [slice(0, half), slice(half, len(images))]
    batches = [(torch.tensor(images[p]), captions[p]) for p in parts if captions[p]]
    return zeroshot_retrieval.evaluate(
        model_of(texts), batches, tokenizer, recall_k_list=ks.tolist(), **CPU
    )


def retrieval_in_orders(
    scores: np.ndarray, positive: np.ndarray, ks: np.ndarray, orders: np.ndarray
) -> dict[str, float]:
    """Mean over orders of the gallery of the share of queries that find a positive."""
    metrics: dict[str, list[float]] = defaultdict(list)
    for order in orders:
        pairs = torch.tensor(scores[:, order]), torch.tensor(positive[:, order])
        for k in ks.tolist():
            found = zeroshot_retrieval.recall_at_k(*pairs, k) > 0
            metrics[f"recall@{k}"].append(found.double().mean().item())
    return {name: float(np.mean(values)) for name, values in metrics.items()}


def selection(images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
    """Accuracies of instances of images (N, I, D) and texts (N, T, D)."""
    names = np.arange(texts.shape[0] * texts.shape[1]).reshape(texts.shape[:2]).astype(str).tolist()
    batches = [(torch.tensor(images)[..., None, None], names)]
    table = model_of(texts.reshape(-1, texts.shape[-1]))
    return image_caption_selection.evaluate(table, batches, tokenizer, **CPU)


def measure(kind: str, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The metrics of one setting."""
    if kind == "classification":
        orders = arrays.pop("orders")
        found = [classification(**arrays, order=order) for order in orders]
        return {name: float(np.mean([f[name] for f in found])) for name in found[0]}
    if kind == "multilabel":
        order = np.arange(arrays["labels"].shape[1])
        return classification(**arrays, order=order) | {"per_class": average_precisions(**arrays)}
    kinds = {
        "retrieval": retrieval,
        "retrieval_in_orders": retrieval_in_orders,
        "selection": selection,
    }
    return kinds[kind](**arrays)


def main() -> None:
    """Measures all settings of a file."""
    settings: dict[tuple[str, str], dict[str, np.ndarray]] = defaultdict(dict)
    with np.load(sys.argv[1]) as file:
        for key in file:
            number, kind, name = key.split("/")
            settings[number, kind][name] = file[key]
    results = {number: measure(kind, arrays) for (number, kind), arrays in settings.items()}
    Path(sys.argv[2]).write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
