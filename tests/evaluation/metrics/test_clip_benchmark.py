"""Every metric that clip-benchmark 1.6.2 has, against its own functions on the same embeddings.

Forty settings: sizes, classes that do not occur, fewer than five classes, several templates and
captions, ties. Where clip-benchmark is known to be wrong, the test says what is compared instead:

- Ties: it takes them in the order of the data. Our expectation over a random order is its mean over
  all orders of the classes or of the gallery.
- Average precision: a class without samples counts as 0 there, and samples that tie have the order
  of the data; scikit-learn's function on the classes that occur is the reference.
- Selection: among equal scores the first is chosen, which is the right one.
"""

import json
import os
import subprocess
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from places import REPOSITORY, TESTS
from sklearn.metrics import average_precision_score

from clip_jax.evaluation.metrics.multilabel import mean_average_precision
from clip_jax.evaluation.metrics.ranking import hits_at_k, selection_hits
from clip_jax.evaluation.retrieval import rank_counts, retrieval_recalls
from clip_jax.evaluation.zero_shot import evaluate_zero_shot, zero_shot_classifier

pytestmark = pytest.mark.parity

Arrays = dict[str, np.ndarray]


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Rows of ±1/4, 16 wide: their float32 products are exact, and many are equal."""
    bits = rng.integers(0, 2, (*shape, 2))
    return np.repeat(bits * 2 - 1, 8, axis=-1).astype(np.float32) / 4


def classification(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    number, count = int(rng.integers(1, 300)), int(rng.integers(2, 60))
    classes = unit(rng, int(rng.integers(1, 4)), count, 12)
    # About a third of the classes do not occur.
    labels = rng.choice(np.unique(rng.integers(0, count, count)), number)
    images = classes.mean(0)[labels] + unit(rng, number, 12)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    return {
        "images": images,
        "classes": classes,
        "labels": labels,
        "orders": np.arange(count)[None],
    }


def classification_with_ties(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    count = 4 + seed % 3
    return {
        "images": signs(rng, 30),
        "classes": signs(rng, 1, count),
        "labels": rng.integers(0, count, 30),
        "orders": np.array(list(permutations(range(count)))),
    }


def multilabel(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    number, count = int(rng.integers(20, 200)), int(rng.integers(2, 25))
    labels = rng.random((number, count)) < rng.uniform(0, 0.3, count) ** 2
    classes = unit(rng, 1, count, 12)
    images = labels @ classes[0] + 0.5 * rng.normal(size=(number, 12))
    images = (images / np.linalg.norm(images, axis=1, keepdims=True)).astype(np.float32)
    return {"images": images, "classes": classes, "labels": labels.astype(np.int64)}


def retrieval(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    number = int(rng.integers(10, 150))
    image_of_text = np.repeat(np.arange(number), rng.integers(1, 7, number))
    images = unit(rng, number, 12)
    texts = images[image_of_text] + unit(rng, len(image_of_text), 12)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    ks = np.array([1, 5, 10])
    return {"images": images, "texts": texts, "image_of_text": image_of_text, "ks": ks}


def retrieval_with_ties(seed: int) -> Arrays:
    """Queries of several positives each, in a gallery small enough for all its orders."""
    rng = np.random.default_rng(seed)
    queries, gallery, owners = signs(rng, 9), signs(rng, 6), rng.integers(0, 3, 6)
    return {
        "scores": queries @ gallery.T,
        "positive": (np.arange(9)[:, None] % 3 == owners) | (np.arange(6) == seed % 6),
        "ks": np.array([1, 2, 3, 5]),
        "orders": np.array(list(permutations(range(6)))),
    }


def selection(seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    number = int(rng.integers(50, 200))
    images, texts = ((1, 2), (2, 2), (3, 4), (2, 1))[seed % 4]
    shared = unit(rng, number, max(images, texts), 12)
    noise = [unit(rng, number, n, 12) for n in (images, texts)]
    parts = [shared[:, : x.shape[1]] + x for x in noise]
    return {
        name: x / np.linalg.norm(x, axis=-1, keepdims=True)
        for name, x in zip(("images", "texts"), parts, strict=True)
    }


MAKERS: list[tuple[str, Callable[[int], Arrays], int]] = [
    ("classification", classification, 10),
    ("classification", classification_with_ties, 5),
    ("multilabel", multilabel, 8),
    ("retrieval", retrieval, 8),
    ("retrieval_in_orders", retrieval_with_ties, 4),
    ("selection", selection, 4),
]
SETTINGS = [(kind, maker(seed)) for kind, maker, count in MAKERS for seed in range(count)]
CONSTANT = {"images": np.full((5, 1, 4), 0.5, np.float32), "texts": np.full((5, 2, 4), 0.5, "f")}
SETTINGS.append(("selection", CONSTANT))


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """clip-benchmark's metrics of every setting; ORACLE names another Python that has it."""
    python = Path(os.environ.get("ORACLE", REPOSITORY / ".oracle" / "bin" / "python"))
    if not python.exists():
        pytest.skip(f"no reference libraries at {python}: run `make oracle`, or set ORACLE")
    folder = tmp_path_factory.mktemp("clip_benchmark")
    arrays = {
        f"{number}/{kind}/{name}": array
        for number, (kind, setting) in enumerate(SETTINGS)
        for name, array in setting.items()
    }
    np.savez(folder / "settings.npz", **arrays)
    program = TESTS / "oracle" / "clip_benchmark_metrics.py"
    command = [python, program, folder / "settings.npz", folder / "results.json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return [results[str(number)] for number in range(len(SETTINGS))]


def ours(kind: str, setting: Arrays) -> dict[str, float]:
    """Our metrics of a setting, under clip-benchmark's names."""
    if kind == "classification":
        return our_classification(setting)
    if kind == "retrieval":
        ks = setting["ks"].tolist()
        found = retrieval_recalls(*(setting[x] for x in ("images", "texts", "image_of_text")), ks)
        names = (("image_retrieval", "text_to_image"), ("text_retrieval", "image_to_text"))
        return {f"{a}_recall@{k}": found[f"{b}_recall_at_{k}"] for a, b in names for k in ks}
    if kind == "retrieval_in_orders":
        counts = counts_of(setting["scores"], setting["positive"])
        return {f"recall@{k}": hits_at_k(counts, k).mean() for k in setting["ks"].tolist()}
    if kind == "selection":
        hits = selection_hits(np.einsum("nid,ntd->nit", setting["images"], setting["texts"]))
        return {name.replace("accuracy", "acc"): hit.mean() for name, hit in hits.items()}
    scores = setting["images"] @ setting["classes"][0].T
    return {"mean_average_precision": mean_average_precision(scores, setting["labels"]).mean()}


def our_classification(setting: Arrays) -> dict[str, float]:
    classes, count = setting["classes"], setting["classes"].shape[1]

    def embed_text(texts: list[str]) -> np.ndarray:
        return np.stack([classes[tuple(map(int, text.split("/")))] for text in texts])

    classifier = zero_shot_classifier(
        embed_text,
        [str(c) for c in range(count)],
        [f"{template}/{{}}" for template in range(len(classes))],
    )
    found, _ = evaluate_zero_shot(setting["images"], setting["labels"], classifier, np.matmul)
    return {
        "acc1": found["accuracy_top1"],
        "acc5": found.get("accuracy_top5", np.nan),
        "mean_per_class_recall": found["mean_per_class_accuracy"],
    }


def counts_of(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """`rank_counts` of given scores: queries are rows of the identity, items columns of scores."""
    labels = np.where(positive, np.arange(positive.shape[1]), -1)
    return rank_counts(np.eye(len(scores)), labels, scores.T, np.arange(positive.shape[1]))


def by_scikit_learn(setting: Arrays) -> dict[str, float]:
    scores, labels = setting["images"] @ setting["classes"][0].T, setting["labels"]
    present = np.flatnonzero(labels.any(0))
    found = [average_precision_score(labels[:, c], scores[:, c]) for c in present]
    return {"mean_average_precision": float(np.mean(found))}


def test_the_settings_hold_what_they_should() -> None:
    assert len(SETTINGS) == 40
    of = {kind: [s for k, s in SETTINGS if k == kind] for kind, _, _ in MAKERS}
    counts = [len(set(s["labels"])) - s["classes"].shape[1] for s in of["classification"]]
    assert sum(missing < 0 for missing in counts) >= 5
    assert sum(s["classes"].shape[1] < 5 for s in of["classification"]) >= 2
    assert sum(not s["labels"].any(0).all() for s in of["multilabel"]) >= 2
    assert sum(len(s["orders"]) > 1 for s in of["classification"]) == 5


@pytest.mark.parametrize("number", range(len(SETTINGS) - 1))
def test_equals_clip_benchmark(number: int, theirs: list[dict[str, Any]]) -> None:
    kind, setting = SETTINGS[number]
    wanted, found = dict(theirs[number]), ours(kind, setting)
    if kind == "multilabel":
        per_class = np.array(wanted.pop("per_class"))
        present = setting["labels"].any(0)
        assert (per_class[~present] == 0).all()
        wanted = {"mean_average_precision": per_class[present].mean()}
        assert wanted == pytest.approx(by_scikit_learn(setting), abs=1e-6)
    assert found == pytest.approx(wanted, abs=1e-6, nan_ok=True)


def test_equal_scores_are_right_there_and_chance_here(theirs: list[dict[str, Any]]) -> None:
    assert theirs[-1]["text_acc"] == 1.0
    assert ours(*SETTINGS[-1]) == {"text_acc": 0.5, "image_acc": 1.0, "acc": 0.5}
