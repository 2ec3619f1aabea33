"""Projection against attributes: the closed form, and a planted bias in embeddings."""

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation.fairness.projection import attribute_projection, projected
from clip_jax.evaluation.fairness.skew import skew_metrics
from clip_jax.evaluation.zero_shot import evaluate_zero_shot


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_it_is_the_optimum_of_the_papers_problem() -> None:
    """Equation 5: the P that minimises ‖P − P₀‖² + λ/|S| Σ ‖P z_i − P z_j‖², by its gradient."""
    rng = np.random.default_rng(0)
    directions, pairs = rng.normal(size=(3, 10)), rng.normal(size=(7, 2, 10))
    outside = np.eye(10) - directions.T @ np.linalg.solve(directions @ directions.T, directions)
    found = attribute_projection(directions, pairs, 5.0)

    def objective(matrix: np.ndarray) -> float:
        differences = (pairs[:, 0] - pairs[:, 1]) @ matrix.T
        return float(((matrix - outside) ** 2).sum() + 5.0 * (differences**2).sum(1).mean())

    for _ in range(20):
        step = rng.normal(size=(10, 10))
        slope = (objective(found + 1e-4 * step) - objective(found - 1e-4 * step)) / 2e-4
        assert abs(slope) < 1e-7
    # Dependent directions have the span of the independent ones; without pairs only P₀ is left.
    twice = np.concatenate([directions, directions[:1] - directions[1:2]])
    assert np.allclose(attribute_projection(twice, pairs, 0.0), outside, atol=1e-12)
    assert np.allclose(attribute_projection(twice, np.zeros((0, 2, 10))), outside, atol=1e-12)


def test_a_text_that_is_the_attribute() -> None:
    projection = attribute_projection(np.eye(3)[:1], np.zeros((0, 2, 3)))
    with pytest.raises(UserError, match="project_out: nothing is left of text 1"):
        projected(projection, np.eye(3)[[1, 0]])


def test_a_planted_bias_goes_and_accuracy_stays() -> None:
    """Images are of a class and a group; the prompts of five classes lean to a group by ±0.6."""
    rng = np.random.default_rng(1)
    width, classes, images = 64, 10, 4000
    basis = np.linalg.qr(rng.normal(size=(width, width)))[0]
    centres, gender = basis[:classes], basis[classes]
    labels, groups = rng.integers(0, classes, images), rng.integers(0, 2, images)
    sign = 2.0 * groups[:, None] - 1
    embeds = unit(centres[labels] + 0.4 * sign * gender + 0.15 * rng.normal(size=(images, width)))
    lean = np.where(np.arange(classes) % 2 == 0, 0.6, -0.6)[:, None]
    texts = unit(centres + lean * gender).astype(np.float32)
    noise = 0.02 * rng.normal(size=(2, width))
    directions = np.stack([gender, -gender]) + noise
    pairs = np.stack([centres + 0.5 * gender, centres - 0.5 * gender], axis=1)
    after = projected(attribute_projection(directions - directions.mean(0), pairs), texts)
    embeds = embeds.astype(np.float32)

    def measured(texts: np.ndarray) -> tuple[float, float, float]:
        skew = skew_metrics(embeds, texts, groups, 200)
        accuracy = evaluate_zero_shot(embeds, labels, texts.T, np.matmul)[0]["accuracy_top1"]
        return skew["max_skew_uniform"].mean(), skew["ndkl_data"].mean(), accuracy

    (skew, divergence, accuracy), (skew_after, divergence_after, accuracy_after) = (
        measured(texts),
        measured(after),
    )
    assert skew > 0.4
    assert skew_after < skew / 4
    assert divergence_after < divergence / 2
    assert accuracy_after > accuracy - 0.01
