"""Right captions among wrong ones: against loops over the definition, and chance where all tie."""

import numpy as np
import pytest

from clip_jax.evaluation.metrics.ranking import selection_hits


@pytest.mark.parametrize(("images", "captions"), [(1, 2), (2, 2), (3, 2), (1, 4)])
def test_hits_are_those_of_the_definition(images: int, captions: int) -> None:
    scores = np.random.default_rng(0).normal(size=(50, images, captions))
    hits = selection_hits(scores)
    own = range(min(images, captions))
    for n, score in enumerate(scores):
        text = all(max(range(captions), key=lambda c: score[i, c]) == i for i in own)
        image = all(max(range(images), key=lambda i: score[i, c]) == c for c in own)
        found = [hits[name][n] for name in ("text_accuracy", "image_accuracy", "accuracy")]
        assert found == [text, image, text and image]


def test_ties_are_chance() -> None:
    hits = selection_hits(np.zeros((1, 2, 2)))
    assert [hits[name][0] for name in hits] == [0.25, 0.25, 1 / 16]
    assert selection_hits(np.zeros((1, 1, 2)))["text_accuracy"][0] == 0.5
