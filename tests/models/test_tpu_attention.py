"""The TPU's attention kernel, run by Pallas's interpreter, against XLA and float64.

The interpreter is slow: `ATTENTION_SHAPES=60 pytest tests/models/test_tpu_attention.py` takes
minutes and is for changes of the kernel.
"""

import contextlib
import functools
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from clip_jax.models import attention
from clip_jax.models.attention import BlockConfig
from clip_jax.models.kernels import tpu_attention as tpu_attention_module
from clip_jax.models.kernels.tpu_attention import tpu_attention, tpu_self_attention
from clip_jax.models.transformer import Transformer
from clip_jax.sharding import make_mesh

SHAPES = int(os.environ.get("ATTENTION_SHAPES", "12"))


def case(seed: int) -> dict[str, Any]:
    """Arrays of a random shape; every third is causal, every third masks keys."""
    rng = np.random.default_rng(seed)
    # Heads are unrolled, which takes the time; long sequences and many heads are rare.
    length = int(rng.integers(1, (33, 129, 300, 1025)[seed % 4]))
    heads = int(rng.integers(1, 17 if seed % 10 == 0 else 4))
    head_dim = 8 * int(rng.integers(4, 17))
    batch = int(rng.integers(1, 5))
    kind = ("plain", "causal", "mask")[seed % 3]
    keys = length if kind == "causal" else int(rng.integers(1, length + 8))
    arrays = [
        rng.standard_normal((batch, n, heads, head_dim)) for n in (length, keys, keys, length)
    ]
    mask = None
    if kind == "mask":
        mask = rng.random((batch, keys)) < 0.7
        mask[:, 0] = True
    return {"arrays": arrays, "causal": kind == "causal", "mask": mask}


def exact(query: Any, key: Any, value: Any, causal: bool, mask: Any, xp: Any = np) -> Any:
    """Attention by its definition, in the arrays' dtype."""
    scores = xp.einsum("blhk,bnhk->bhln", query, key) * query.shape[-1] ** -0.5
    if causal:
        scores = xp.where(xp.tril(xp.ones(scores.shape[-2:], bool)), scores, -xp.inf)
    if mask is not None:
        scores = xp.where(mask[:, None, None], scores, -xp.inf)
    weights = xp.exp(scores - scores.max(-1, keepdims=True))
    return xp.einsum("bhln,bnhk->blhk", weights / weights.sum(-1, keepdims=True), value)


def results(function: Any, arrays: list[Any]) -> list[Any]:
    """The result, and its gradients in the direction of the last array."""
    *inputs, direction = arrays
    mixed, pull = jax.vjp(function, *inputs)
    return [mixed, *pull(direction)]


def xla(causal: bool, mask: Any) -> Any:
    return lambda q, k, v: jax.nn.dot_product_attention(
        q, k, v, mask=None if mask is None else mask[:, None, None], is_causal=causal
    )


def ours(causal: bool, mask: Any) -> Any:
    return lambda q, k, v: tpu_attention(q, k, v, causal, mask, interpret=True)


@pytest.mark.parametrize("seed", range(SHAPES))
def test_it_equals_xla(seed: int) -> None:
    found = case(seed)
    options = found["causal"], found["mask"]
    arrays = [jnp.asarray(x, jnp.float32) for x in found["arrays"]]
    expected, got = (results(jax.jit(f(*options)), arrays) for f in (xla, ours))
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-6, atol=1e-6)
    for ours_, theirs in zip(got[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours_, theirs, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_in_bfloat16_it_is_no_further_from_float64_than_xla(seed: int) -> None:
    found = case(seed)
    options = found["causal"], found["mask"]
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in found["arrays"]]
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in rounded]
        truth = results(lambda *x: exact(*x, *options, jnp), wide)

    def errors(function: Any) -> list[float]:
        got = results(jax.jit(function(*options)), rounded)
        pairs = zip(got, truth, strict=True)
        return [float(np.sqrt(np.mean((np.asarray(g, float) - t) ** 2))) for g, t in pairs]

    for mine, theirs in zip(errors(ours), errors(xla), strict=True):
        # XLA does not round the scores' gradients on a CPU, as it does on a TPU.
        assert mine <= 1.1 * theirs


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 4, 1), (2, 2, 2)])
def test_eight_devices_equal_one(mesh: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal((8, 20, 4, 32)), jnp.float32) for _ in range(4)]
    mask = jnp.asarray(rng.random((8, 20)) < 0.7).at[:, 0].set(True)
    expected = results(jax.jit(ours(False, mask)), arrays)
    devices = make_mesh(*mesh)
    with jax.set_mesh(devices):
        split = NamedSharding(devices, PartitionSpec(("data", "fsdp"), None, "tensor"))
        got = results(jax.jit(ours(False, mask)), [jax.device_put(x, split) for x in arrays])
        assert got[0].sharding.shard_shape(got[0].shape)[0] == 8 // (mesh[0] * mesh[1])
    for one, eight in zip(expected, got, strict=True):
        np.testing.assert_allclose(eight, one, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mesh", [None, (2, 2, 2)])
def test_a_block_is_the_same_by_the_kernel(
    monkeypatch: pytest.MonkeyPatch, mesh: tuple[int, int, int] | None
) -> None:
    """Gradients of all parameters, too: the kernel's path has products and biases of its own."""
    config = BlockConfig(4, 96, "gelu", 1e-5, jnp.dtype("float32"), "openai", causal=True)
    stack = Transformer(2, config, scan_layers=True, remat="qkv")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((8, 20, 128)), jnp.float32)
    params = stack.init(jax.random.key(0), x)
    params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), params)
    gradient = jax.value_and_grad(lambda p, x: (stack.apply(p, x) ** 2).mean(), (0, 1))
    expected = jax.jit(gradient)(params, x)
    monkeypatch.setattr(attention, "choose", lambda *_: "tpu")
    interpreted = functools.partial(tpu_self_attention, interpret=True)
    monkeypatch.setattr(tpu_attention_module, "tpu_self_attention", interpreted)
    with jax.set_mesh(make_mesh(*mesh)) if mesh else contextlib.nullcontext():
        got = jax.jit(lambda *inputs: gradient(*inputs))(params, x)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4), got, expected)
