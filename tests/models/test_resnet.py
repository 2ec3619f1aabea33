"""Convolutions that are computed as matrix products equal those of XLA, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.resnet import _convolve

LAYOUT = ("NHWC", "HWIO", "NHWC")


@pytest.mark.parametrize(
    ("height", "width", "kernel", "stride"),
    [
        *((2, 2, 3, 1), (1, 1, 3, 1), (2, 1, 3, 1), (1, 2, 3, 1), (3, 2, 5, 1)),
        *((5, 4, 1, 1), (1, 1, 1, 1)),
        *((3, 3, 3, 1), (2, 2, 3, 2), (4, 4, 1, 2)),  # left to XLA
    ],
)
def test_products_are_convolutions(height: int, width: int, kernel: int, stride: int) -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    x_BHWC = jax.random.normal(keys[0], (3, height, width, 4))
    kernel_KKCD = jax.random.normal(keys[1], (kernel, kernel, 4, 5))
    padding = [(kernel // 2, kernel // 2)] * 2

    def loss(function, x, w):
        y = function(x, w, (stride, stride), padding, dimension_numbers=LAYOUT)
        return jnp.sum(jnp.sin(y)), y

    results = [
        jax.value_and_grad(loss, argnums=(1, 2), has_aux=True)(function, x_BHWC, kernel_KKCD)
        for function in (_convolve, jax.lax.conv_general_dilated)
    ]
    for ours, theirs in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=2e-5)
