"""Rotary positions and the block options of EVA-02 and Perception Encoder, against restatements in
numpy; the whole towers are compared with timm's in the parity suite."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.models.architectures import get_architecture
from clip_jax.models.attention import BlockConfig, Context, rope_tables, rotate
from clip_jax.models.initializers import BlockInitializers
from clip_jax.models.transformer import Block

WIDTH, HEADS, HIDDEN = 16, 2, 24


@pytest.mark.parametrize(
    ("name", "size", "prefix", "offset", "trained", "row_first"),
    [
        ("EVA02-B-16", 64, 1, 0, 16, True),
        ("PE-Core-B-16", 64, 1, 1, 14, False),
        ("PE-Core-bigG-14-448", 56, 0, 0, 32, False),
    ],
)
def test_angles(
    name: str, size: int, prefix: int, offset: int, trained: int, row_first: bool
) -> None:
    """Every patch, every pair of features: position on the trained grid times its frequency."""
    config = get_architecture(name, image_size=size)
    cosine, sine = rope_tables(config.vision, size)
    grid, width = 4, config.vision.width // config.vision.heads
    assert cosine.shape == sine.shape == (prefix + grid * grid, width)
    assert (cosine[:prefix] == 1).all()  # a class token is not turned
    for row in range(grid):
        for column in range(grid):
            first, second = (row, column) if row_first else (column, row)
            for feature in range(width):
                pair, half = feature // 2, width // 4
                at = first if pair < half else second
                angle = (at + offset) / grid * trained * 10_000.0 ** (-(pair % half) / half)
                token = prefix + row * grid + column
                assert cosine[token, feature] == pytest.approx(np.cos(angle), abs=2e-6)
                assert sine[token, feature] == pytest.approx(np.sin(angle), abs=2e-6)


def test_rotation_is_a_product_of_complex_numbers() -> None:
    rng = np.random.default_rng(0)
    x, angles = rng.standard_normal((2, 3, 1, 8)), rng.standard_normal((3, 4))
    tables = [np.repeat(f(angles), 2, axis=-1).astype(np.float32) for f in (np.cos, np.sin)]
    turned = np.asarray(rotate(jnp.asarray(x, jnp.float32), (tables[0], tables[1])))
    numbers = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)[:, None]
    assert np.abs(turned[..., ::2] - numbers.real).max() < 1e-6
    assert np.abs(turned[..., 1::2] - numbers.imag).max() < 1e-6


def norm(x: np.ndarray, p: Any, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def dense(x: np.ndarray, p: Any) -> np.ndarray:
    return x @ p["kernel"] + p["bias"]


def eva_block(x: np.ndarray, p: Any, eps: float, branch: bool) -> np.ndarray:
    """EVA-02's block in float64: B and L, or with norms on the branches, E."""

    def attend(y: np.ndarray) -> np.ndarray:
        a = p["attention"]
        query, key, value = (
            np.einsum("bld,dhk->blhk", y, k) for k in np.moveaxis(a["query_key_value"], 1, 0)
        )
        query, value = (
            z + b for z, b in zip((query, value), a["query_key_value_bias"], strict=True)
        )
        scores = np.einsum("blhk,bnhk->bhln", query, key) * (WIDTH // HEADS) ** -0.5
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        mixed = np.einsum("bhln,bnhk->blhk", weights, value).reshape(y.shape)
        if not branch:
            mixed = norm(mixed, a["inner_norm"], eps)
        return mixed @ a["out"].reshape(WIDTH, WIDTH) + a["out_bias"]

    def mlp(y: np.ndarray) -> np.ndarray:
        m = p["mlp"]
        gate = dense(y, m["gate"])
        return dense(norm(gate / (1 + np.exp(-gate)) * dense(y, m["in"]), m["norm"], eps), m["out"])

    for name, function in (("attention_norm", attend), ("mlp_norm", mlp)):
        x = x + norm(function(x), p[name], eps) if branch else x + function(norm(x, p[name], eps))
    return x


@pytest.mark.slow
@pytest.mark.parametrize("branch", [False, True])
def test_block_options(branch: bool) -> None:
    config = BlockConfig(
        heads=HEADS,
        mlp_dim=HIDDEN,
        activation="gelu",
        norm_eps=1e-6,
        dtype=jnp.dtype("float32"),
        init="normal",
        norm="branch" if branch else "pre",
        mlp="swiglu",
        inner_norm=not branch,
        key_bias=False,
    )
    block = Block(config, BlockInitializers("normal", WIDTH, HIDDEN, 1))
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 5, WIDTH)).astype(np.float32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, Context()))["params"]
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32) * 0.4, shapes
    )
    ours, _ = block.apply({"params": params}, x, Context())
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    expected = eva_block(x.astype(np.float64), wide, 1e-6, branch)
    assert np.abs(np.asarray(ours) - expected).max() < 1e-5 * np.abs(expected).max()
