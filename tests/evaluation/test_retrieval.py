"""Recall@k against a brute-force float64 reference, on one device and on eight."""

import os
import subprocess
import sys
from itertools import permutations
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from places import REPOSITORY, SUPPORT

from clip_jax.errors import UserError
from clip_jax.evaluation import retrieval
from clip_jax.evaluation.retrieval import recall_at_k, retrieval_recalls

KS = (1, 5, 10)


def brute_force(queries, gallery, positive, ks=KS):
    """float64 scores, a stable full sort; for data without ties."""
    order = np.argsort(-(queries.astype(np.float64) @ gallery.T), axis=1, kind="stable")
    hits = np.take_along_axis(positive, order, axis=1)
    return {k: hits[:, :k].any(1).mean() for k in ks}


def embeddings(rng, n, d):
    x = rng.normal(size=(n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def several_captions(num_images, num_texts, d, seed):
    """Images and noisy captions, at least one an image, in random order."""
    rng = np.random.default_rng(seed)
    image_of_text = np.concatenate(
        [np.arange(num_images), rng.integers(0, num_images, num_texts - num_images)]
    )
    rng.shuffle(image_of_text)
    images = embeddings(rng, num_images, d)
    texts = images[image_of_text] + rng.normal(size=(num_texts, d)).astype(np.float32) * 0.25
    return images, texts / np.linalg.norm(texts, axis=1, keepdims=True), image_of_text


def named(direction, recalls):
    return {f"{direction}_recall_at_{k}": v for k, v in recalls.items()}


def check_against_brute_force():
    """Also run in a process with eight devices."""
    for num_images, num_texts, d, seed in ((1, 1, 3, 0), (13, 40, 5, 1), (701, 1900, 12, 2)):
        images, texts, image_of_text = several_captions(num_images, num_texts, d, seed)
        got = retrieval_recalls(images, texts, image_of_text, KS)
        positive = np.arange(num_images)[:, None] == image_of_text
        expected = {
            **named("image_to_text", brute_force(images, texts, positive)),
            **named("text_to_image", brute_force(texts, images, positive.T)),
            "num_images": num_images,
            "num_texts": num_texts,
            "num_image_queries": num_images,
            "num_text_queries": num_texts,
        }
        assert got == pytest.approx(expected, abs=1e-12)
        assert num_images < 700 or 0.1 < got["text_to_image_recall_at_1"] < 0.9


@pytest.mark.parametrize("blocks", [None, (64, 100)])
def test_equals_brute_force(blocks, monkeypatch):
    if blocks:
        monkeypatch.setattr(retrieval._rank_counts, "__defaults__", blocks)
    check_against_brute_force()
    check_constant_is_chance()


def test_padding_of_the_last_block_is_no_item(monkeypatch):
    """Best positives below 0, which a padded row of zeros would outrank, and none near the end."""
    monkeypatch.setattr(retrieval._rank_counts, "__defaults__", (2, 4))
    texts = np.concatenate([-np.eye(2), -np.full((7, 2), 0.5**0.5)]).astype(np.float32)
    # Captions 0 and 1 are the images' own; the rest, in two more blocks, are a third image's.
    image_of_text = np.array([0, 1, *[2] * 7])
    images = np.array([[0.6, 0.8], [0.8, 0.6], [-1, 0]], np.float32)
    found = retrieval.retrieval_queries(
        images, texts, image_of_text, image_query_mask=np.array([True, True, False])
    )
    assert found["image_to_text"].counts.tolist() == [[0, 0, 1], [0, 0, 1]]


def test_equals_brute_force_on_eight_devices():
    code = (
        "import jax, test_retrieval as t\n"
        "assert len(jax.devices()) == 8\n"
        "t.check_against_brute_force(); t.check_constant_is_chance(); t.check_no_communication()"
    )
    here = Path(__file__).parent
    env = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, [here, SUPPORT, REPOSITORY])),
    }
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- Ties ---------------------------------------------------------------------------------------


def check_constant_is_chance():
    n, d = 777, 37
    constant = np.repeat(embeddings(np.random.default_rng(0), 1, d), n, axis=0)
    got = retrieval_recalls(constant, constant, np.arange(n), KS)
    for k in KS:
        assert got[f"image_to_text_recall_at_{k}"] == pytest.approx(k / n)
        assert got[f"text_to_image_recall_at_{k}"] == pytest.approx(k / n)


@pytest.mark.parametrize("k", [1, 2, 3, 6])
def test_ties_count_as_the_mean_over_all_orders(k):
    # One item above the best positive; two negatives and two positives tie with it; one below.
    scores = np.array([[3.0], [2.0], [2.0], [2.0], [2.0], [1.0]])
    labels = np.array([0, 7, 0, 7, 0, 7])
    orders = [(0, *middle, 5) for middle in permutations((1, 2, 3, 4))]
    expected = np.mean([any(labels[i] == 7 for i in order[:k]) for order in orders])
    assert recall_at_k([[1.0]], [7], scores, labels, [k])[k] == pytest.approx(expected)


# --- What is a positive -------------------------------------------------------------------------


def test_equal_captions_of_different_images_are_right():
    rng = np.random.default_rng(3)
    words = embeddings(rng, 20, 6)
    image_of_text = np.sort(rng.integers(0, 60, 240))
    image_of_text[:60] = np.arange(60)
    word_of_text = rng.integers(0, 20, 240)
    captions = [f"word {w}" for w in word_of_text]
    # Equal captions have equal embeddings; an image looks like a mixture of its captions.
    texts = words[word_of_text]
    images = np.stack([texts[image_of_text == i].mean(0) for i in range(60)])
    images += rng.normal(size=images.shape).astype(np.float32) * 0.3
    words_of_image = [set(word_of_text[image_of_text == i]) for i in range(60)]
    positive = np.array([[w in words for w in word_of_text] for words in words_of_image])
    got = retrieval_recalls(images, texts, image_of_text, KS, texts=captions)
    # With text positives all items that tie are right or all are wrong, for an image as query.
    for k, recall in brute_force(images, texts, positive).items():
        assert got[f"image_to_text_recall_at_{k}"] == pytest.approx(recall)
    for k, recall in brute_force(texts, images, positive.T).items():
        assert got[f"text_to_image_recall_at_{k}"] == pytest.approx(recall)
    own_only = retrieval_recalls(images, texts, image_of_text, KS)
    assert own_only["text_to_image_recall_at_1"] < got["text_to_image_recall_at_1"]


def test_subset_of_queries_against_the_full_gallery():
    images, texts, image_of_text = several_captions(90, 200, 6, 4)
    image_mask, text_mask = np.arange(90) % 3 == 0, image_of_text % 3 == 0
    positive = np.arange(90)[:, None] == image_of_text
    got = retrieval_recalls(
        images,
        texts,
        image_of_text,
        KS,
        image_query_mask=image_mask,
        text_query_mask=text_mask,
    )
    expected = {
        **named("image_to_text", brute_force(images[image_mask], texts, positive[image_mask])),
        **named("text_to_image", brute_force(texts[text_mask], images, positive.T[text_mask])),
        "num_images": 90,
        "num_texts": 200,
        "num_image_queries": 30,
        "num_text_queries": int(text_mask.sum()),
    }
    assert got == pytest.approx(expected, abs=1e-12)


# --- Memory and communication -------------------------------------------------------------------


def compiled_block(n=20_000, d=8):
    """The program that 20,000 x 20,000 runs on this process's devices."""
    calls = []

    def spy(*args):
        calls.append(args)
        return np.ones((len(args[0]), 3), np.int32)

    x = embeddings(np.random.default_rng(0), n, d)
    with mock.patch.object(retrieval, "_count_block", spy):
        recall_at_k(x, np.arange(n), x, np.arange(n))
    return retrieval._count_block.lower(*calls[0]).compile()


def test_no_matrix_of_all_pairs():
    memory = compiled_block().memory_analysis()
    block = 4 * retrieval.QUERIES_PER_BLOCK * retrieval.GALLERY_PER_BLOCK
    assert block < memory.temp_size_in_bytes < 6 * block < 20_000 * 20_000 * 4 / 10
    assert memory.argument_size_in_bytes < 4 * 20_000 * (8 + 8)


def check_no_communication():
    text = compiled_block().as_text()
    for collective in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert collective not in text
    assert f"f32[{retrieval.QUERIES_PER_BLOCK},8]" in text  # one device's share of the queries


# --- A user's mistakes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_of_text": [0, 1, 3]}, r"image_of_text\[2\]=3.*0 to 2"),
        ({"image_of_text": [0, 1]}, "one a text"),
        ({"image_of_text": [0.0, 1.0, 2.0]}, "integers"),
        ({"image_of_text": [0, 1, 1]}, "first is query 2"),
        ({"text_embeds": np.full((3, 2), np.nan)}, "row 0 is not finite"),
        ({"text_embeds": np.ones((3, 4))}, "2 and 4 dimensions"),
        ({"image_embeds": np.ones(3)}, r"\(N, D\)"),
        ({"texts": ["a"]}, "texts: 1"),
        ({"image_query_mask": np.zeros(3, bool)}, "none of 3"),
        ({"image_query_mask": [0, 1, 2]}, "accepted is bool"),
    ],
)
def test_mistakes_are_named(change, message):
    good = {
        "image_embeds": np.ones((3, 2)),
        "text_embeds": np.ones((3, 2)),
        "image_of_text": [0, 1, 2],
    }
    with pytest.raises(UserError, match=message):
        retrieval_recalls(**{**good, **change})
