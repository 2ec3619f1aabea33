"""Suites from end to end with a small CLIP: a row a set, and its numbers by another way."""

import functools
from pathlib import Path

import numpy as np
import pytest
from benchmark_sets import COLOURS, captioned, classified, evaluated_rows, square, write_layout

import clip_jax
from clip_jax.evaluation.embeddings import Embedders
from clip_jax.evaluation.suites.opening import open_set
from clip_jax.evaluation.suites.sets import resolve_suite
from clip_jax.text.sentencepiece_model import train_sentencepiece

OWN = """
[sets.hues]
path = "hues"
classes = 3
samples = [5]
templates = "openai_simple"
[sets.pairs]
path = "pairs"
kind = "compositional"
samples = [3]
[sets.captions]
path = "pairs"
kind = "retrieval"
texts = [6]
"""


@pytest.fixture(scope="module")
def clip() -> clip_jax.Clip:
    """Random parameters, and a vocabulary of the words below."""
    texts = [f"a photo of the {c} thing. a {c} square, one of {c}; a face" for c in COLOURS]
    tokenizer = train_sentencepiece(texts, 280, context_length=16)
    tower = {"width": 16, "layers": 1, "heads": 2, "mlp_dim": 16}
    return clip_jax.create(
        "custom",
        tokenizer=tokenizer,
        vocab_size=tokenizer.vocab_size,
        context_length=16,
        image_size=16,
        embed_dim=8,
        vision={**tower, "patch_size": 8},
        text=tower,
    )


def test_a_suite_of_ones_own(clip: clip_jax.Clip, tmp_path: Path, cache: Path) -> None:
    seen = ("red", "green", "blue", "red", "blue")
    write_layout(tmp_path / "hues", classified(*seen), list(COLOURS))
    write_layout(tmp_path / "pairs", captioned("red", "green", "blue"), kind="retrieval")
    # A published set among them, of which a part is there.
    faces = [{"png": square(colour), "cls": b"%d" % n} for n, colour in enumerate(COLOURS)]
    write_layout(tmp_path / "root" / "fer2013", faces)
    (tmp_path / "mine.toml").write_text(OWN)
    encode_text = functools.partial(clip.encode_text, truncate=True)
    embedders = Embedders(clip.encode_image, encode_text, clip.transform)
    rows = {}
    for chosen in resolve_suite(f"{tmp_path / 'mine.toml'},fer2013"):
        opened = open_set(chosen, str(tmp_path / "root"), subset=chosen.name == "fer2013")
        (rows[chosen.name],) = evaluated_rows(embedders, opened)
    assert list(rows) == ["hues", "pairs", "captions", "fer2013"]
    for row in rows.values():
        assert 0 <= row[row["metric"]] <= 1

    classify = functools.partial(clip.classify, truncate=True)
    squares = [square(colour) for colour in seen]
    best = classify(squares, list(COLOURS), "openai_simple").argmax(1)
    expected = np.mean(best == [0, 1, 2, 0, 2])
    assert rows["hues"]["accuracy_top1"] == pytest.approx(expected)
    names = [("angry",), ("disgusted",), ("fearful",), ("happy", "smiling"), ("neutral", "bored")]
    names += [("sad", "depressed"), ("surprised", "shocked", "spooked")]
    best = classify([square(c) for c in COLOURS], names, "fer2013").argmax(1)
    assert rows["fer2013"]["accuracy_top1"] == pytest.approx(np.mean(best == [0, 1, 2]))
    scores = encode_text([f"a {c} square" for c in COLOURS]) - encode_text(
        [f"one of {c}" for c in COLOURS]
    )
    right = (scores * clip.encode_image([square(c) for c in COLOURS])).sum(1) > 0
    assert rows["pairs"]["text_accuracy"] == pytest.approx(right.mean())
    recalls = [rows["captions"][f"{way}_recall_at_1"] for way in ("image_to_text", "text_to_image")]
    assert rows["captions"]["mean_recall_at_1"] == pytest.approx(np.mean(recalls))
