"""Right captions among wrong ones: against loops over the definition, and chance where all tie."""

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation.compositional import match_hits, pair_scores


@pytest.mark.parametrize(("images", "captions"), [(1, 2), (2, 2), (3, 2), (1, 4)])
def test_hits_are_those_of_the_definition(images: int, captions: int) -> None:
    scores = np.random.default_rng(0).normal(size=(50, images, captions))
    hits = match_hits(scores)
    own = range(min(images, captions))
    for n, score in enumerate(scores):
        text = all(max(range(captions), key=lambda c: score[i, c]) == i for i in own)
        image = all(max(range(images), key=lambda i: score[i, c]) == c for c in own)
        found = [hits[name][n] for name in ("text_accuracy", "image_accuracy", "accuracy")]
        assert found == [text, image, text and image]


def test_ties_are_chance() -> None:
    hits = match_hits(np.zeros((1, 2, 2)))
    assert [hits[name][0] for name in hits] == [0.25, 0.25, 1 / 16]
    assert match_hits(np.zeros((1, 1, 2)))["text_accuracy"][0] == 0.5


def test_scores_of_pairs() -> None:
    images, texts = np.eye(2), np.asarray([[1, 0], [0, 1], [0, 1], [1, 0], [1, 0], [0.5, 0]])
    scores = pair_scores(images, texts, np.asarray([0, 1, 0]))
    assert scores.tolist() == [[[1, 0]], [[1, 0]], [[1, 0.5]]]


def test_what_is_no_score() -> None:
    with pytest.raises(UserError, match="those of problem 1 are not finite"):
        match_hits(np.asarray([[[1.0, 2.0]], [[np.nan, 0.0]]]))
    with pytest.raises(UserError, match="accepted is"):
        match_hits(np.zeros((2, 2)))
