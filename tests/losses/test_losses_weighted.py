"""Weights of the pairs: against float64 numpy, finite differences, and the losses without."""

from typing import Any

import jax
import numpy as np
import pytest
from test_losses import embeddings
from test_losses_mesh import BIAS, FUNCTIONS, SCALARS, mesh_of

from clip_jax import losses
from clip_jax.errors import UserError
from clip_jax.losses import IMPLEMENTATIONS, softmax_loss
from clip_jax.sharding import batch_sharding

MESHES = [None, (8, 1, 1), (2, 2, 2)]


def reference(
    name: str, weights: Any, images: Any, texts: Any, scale: Any, bias: Any = 0.0
) -> np.float64:
    """The definition, in float64, pair by pair."""
    logits = scale * (images @ texts.T) + bias
    if name == "softmax":
        rows = np.log(np.exp(logits).sum(1)) - np.diagonal(logits)
        columns = np.log(np.exp(logits).sum(0)) - np.diagonal(logits)
        return (weights * (rows + columns) / 2).sum() / weights.sum()
    signs = 2 * np.eye(len(logits)) - 1
    both = (weights[:, None] + weights[None, :]) / 2
    return (both * np.logaddexp(0, -signs * logits)).sum() / weights.sum()


def arguments(name: str, rows: int) -> tuple[Any, ...]:
    return (*embeddings(rows), np.float32(10), np.float32(BIAS))[: 2 + SCALARS[name]]


def gradient(name: str, implementation: str) -> Any:
    def value(weights: Any, *inputs: Any) -> jax.Array:
        return FUNCTIONS[name](*inputs, implementation=implementation, weights=weights)

    return jax.jit(jax.value_and_grad(value, argnums=tuple(range(1, 3 + SCALARS[name]))))


def some_weights(rows: int) -> np.ndarray:
    weights = np.random.default_rng(3).uniform(0, 4, rows).astype(np.float32)
    weights[2] = 0  # such a pair is only a negative of the others
    return weights


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_gradient(
    name: str, implementation: str, mesh: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_columns", lambda rows: 3)  # several chunks, one of them padded
    rows = 16
    inputs, weights = arguments(name, rows), some_weights(rows)
    function = gradient(name, implementation)
    if mesh is None:
        value, gradients = jax.device_get(function(weights, *inputs))
    else:
        with mesh_of(mesh) as devices:
            placed = [jax.device_put(x, batch_sharding(devices)) for x in (weights, *inputs[:2])]
            value, gradients = jax.device_get(function(*placed, *inputs[2:]))
    exact = [np.asarray(x, np.float64) for x in inputs]
    heavy = weights.astype(np.float64)
    np.testing.assert_allclose(value, reference(name, heavy, *exact), rtol=1e-6)
    for index, found in enumerate(gradients):
        expected = np.empty(np.shape(found))
        for at in np.ndindex(expected.shape):
            values = [x.copy() for x in exact]
            values[index][at] += 1e-6
            above = reference(name, heavy, *values)
            values[index][at] -= 2e-6
            expected[at] = (above - reference(name, heavy, *values)) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("rows", [16, 37])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_weights_of_one_change_no_bit(name: str, implementation: str, rows: int) -> None:
    inputs = arguments(name, rows)
    function = gradient(name, implementation)
    with_ones, without = function(np.ones(rows, np.float32), *inputs), function(None, *inputs)
    for ours, expected in zip(jax.tree.leaves(with_ones), jax.tree.leaves(without), strict=True):
        assert np.array_equal(ours, expected)


def test_weights_are_one_a_pair() -> None:
    images, texts = embeddings(4)
    with pytest.raises(UserError, match=r"weights \(3,\): must be \(4,\), one a pair"):
        softmax_loss(images, texts, np.float32(1), weights=np.ones(3))
