"""The losses against float64 numpy: values, gradients, symmetry, devices and memory."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.losses import sigmoid_loss, similarity_logits, softmax_loss

SCALES = (1.0, 10.0, 100.0)
BIAS = -4.0


def reference_softmax(images: Any, texts: Any, scale: Any, bias: Any = 0.0) -> np.float64:
    """Mean over rows and over columns of the cross-entropy with the diagonal, in float64."""
    logits = scale * (images @ texts.T) + bias
    largest = logits.max()
    rows = largest + np.log(np.exp(logits - largest).sum(1))
    columns = largest + np.log(np.exp(logits - largest).sum(0))
    return np.mean((rows + columns) / 2 - np.diagonal(logits))


def reference_sigmoid(images: Any, texts: Any, scale: Any, bias: Any) -> np.float64:
    """Sum over pairs of log(1 + exp(∓logit)), over the number of rows, in float64."""
    logits = scale * (images @ texts.T) + bias
    signs = 2 * np.eye(len(logits)) - 1
    return np.logaddexp(0, -signs * logits).sum() / len(logits)


LOSSES: dict[str, tuple[Callable[..., jax.Array], Callable[..., np.float64]]] = {
    "softmax": (
        lambda images, texts, scale, bias: softmax_loss(images, texts, scale),
        reference_softmax,
    ),
    "sigmoid": (sigmoid_loss, reference_sigmoid),
}


def embeddings(rows: int, width: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two (rows, width) float32 matrices with unit rows; pairs are alike but not equal."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((rows, width))
    texts = 0.5 * images + rng.standard_normal((rows, width))
    return tuple(  # type: ignore[return-value]
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (images, texts)
    )


def arguments(rows: int, scale: float) -> tuple[Any, ...]:
    return (*embeddings(rows), np.float32(scale), np.float32(BIAS))


def in_float64(values: tuple[Any, ...]) -> list[np.ndarray]:
    return [np.asarray(x, np.float64) for x in values]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LOSSES)
def test_value_is_that_of_float64(name: str, scale: float) -> None:
    loss, reference = LOSSES[name]
    inputs = arguments(37, scale)
    np.testing.assert_allclose(loss(*inputs), reference(*in_float64(inputs)), rtol=1e-6)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_finite_difference_of_float64(name: str, scale: float) -> None:
    loss, reference = LOSSES[name]
    inputs = arguments(7, scale)
    trained = (0, 1, 2) if name == "softmax" else (0, 1, 2, 3)
    gradients = jax.grad(loss, argnums=trained)(*inputs)
    exact = in_float64(inputs)
    for index, gradient in enumerate(gradients):
        expected = np.empty(np.shape(gradient))
        for at in np.ndindex(expected.shape):
            step, values = 1e-5 / scale, [x.copy() for x in exact]
            values[index][at] += step
            above = reference(*values)
            values[index][at] -= 2 * step
            expected[at] = (above - reference(*values)) / (2 * step)
        tolerance = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(gradient, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_embeddings_are_compared_in_float32(name: str) -> None:
    loss, reference = LOSSES[name]
    images, texts, scale, bias = arguments(16, 100.0)
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (images, texts)]
    value = loss(*halves, scale, bias)
    assert value.dtype == jnp.float32
    exact = [np.asarray(x, np.float64) for x in halves]
    np.testing.assert_allclose(value, reference(*exact, scale, bias), rtol=1e-6)


@pytest.mark.parametrize(("images", "texts"), [((6, 4), (3, 4)), ((4, 4), (1, 4)), ((4,), (4,))])
def test_what_is_no_pairs_is_refused(images: tuple[int, ...], texts: tuple[int, ...]) -> None:
    for loss, _ in LOSSES.values():
        with pytest.raises(
            UserError, match=r"image_embeds .* text_embeds .*: must be of one shape"
        ):
            loss(np.ones(images, np.float32), np.ones(texts, np.float32), 1.0, 0.0)


def test_logits_of_different_numbers_of_images_and_texts() -> None:
    images, texts = embeddings(5)
    logits = similarity_logits(images, texts[:3], np.float32(2.0), np.float32(1.0))
    assert logits.shape == (5, 3)
    np.testing.assert_allclose(logits, 2 * images @ texts[:3].T + 1, rtol=1e-5, atol=1e-6)
