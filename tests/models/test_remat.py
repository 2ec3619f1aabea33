"""What the backward pass keeps: scanned layers hold no more than the compiler would without a
loop."""

import jax
import jax.numpy as jnp
import pytest

from clip_jax.models.attention import BlockConfig
from clip_jax.models.remat import products
from clip_jax.models.transformer import Transformer

WIDTH, TOKENS, BATCH, LAYERS = 64, 32, 16, 4


def temporaries(scan_layers: bool, remat: str = "none") -> int:
    """Bytes that the gradient of a stack of blocks needs besides its arguments and results."""
    config = BlockConfig(2, 4 * WIDTH, "gelu", 1e-5, jnp.dtype("float32"), "openai")
    stack = Transformer(LAYERS, config, scan_layers, remat)
    x = jax.ShapeDtypeStruct((BATCH, TOKENS, WIDTH), jnp.float32)
    params = jax.eval_shape(stack.init, jax.random.key(0), x)
    gradient = jax.grad(lambda p, x: stack.apply(p, x).sum())
    return jax.jit(gradient).lower(params, x).compile().memory_analysis().temp_size_in_bytes


def test_a_loop_keeps_no_more() -> None:
    """Every intermediate value of every layer would be more."""
    assert temporaries(scan_layers=True) < temporaries(scan_layers=False)


def test_less_is_less() -> None:
    sizes = [temporaries(True, remat) for remat in ("none", "dots", "qkv", "full")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.6 * sizes[0]


def test_a_fused_kernel_is_not_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its result is kept where products are; the traced gradient tells, no GPU is needed."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)

    def loss(weight: jax.Array) -> jax.Array:
        heads = (jnp.ones((2, 50, 4, 64), jnp.bfloat16) @ weight,) * 3
        mixed = jax.nn.dot_product_attention(*heads, implementation="cudnn")
        return (mixed.astype(jnp.float32) ** 2).sum()

    weight = jnp.ones((64, 64), jnp.bfloat16)
    kept = jax.checkpoint(loss, policy=products, prevent_cse=False)
    assert str(jax.make_jaxpr(jax.grad(kept))(weight)).count("dot_product_attention_fwd") == 1
    again = jax.checkpoint(loss, policy=jax.checkpoint_policies.dots_saveable)
    assert str(jax.make_jaxpr(jax.grad(again))(weight)).count("dot_product_attention_fwd") == 2
