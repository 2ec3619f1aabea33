"""Entry of an adapter's arrays into the towers, whose code does not know of them.

Flax lets a function stand around every method of every module (`nn.intercept_methods`). This one
looks for arrays in the collection `ADAPTER`, whose tree is that of the modules; a module without
entries is called as it is. By the last part of their names:

  NAME_a (in, r), NAME_b (r, out): low-rank update of a linear map, x -> x·W + x·a·b, with dropout
    on its own x; NAME is `kernel` of a `nn.Dense`, or `query`, `key`, `value`, `out` of an
    attention (Hu et al. 2022, LoRA).
  down (D, r), down_bias, up (r, D), up_bias: bottleneck after an MLP or an attention,
    x -> x + up(relu(down(x))) (Houlsby et al. 2019).
  prefix_key, prefix_value (n, H, K): keys and values before an attention's own (Li and Liang 2021).
  prompts (n, D): of the image tower, tokens after its own, without positions; of a block, these
    take their place: the last n in the image tower, those after the first in the text tower (Jia et
    al. 2022, VPT, deep; Khattak et al. 2023, MaPLe).

Shape letters are those of `clip_jax.models.attention`.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.attention import Attention, Context
from clip_jax.models.kernels.choice import dot_product
from clip_jax.models.transformer import Block, Mlp
from clip_jax.models.vision import VisionTransformer

Array = jax.Array
Next = Callable[..., Any]

ADAPTER = "adapter"  # the collection, and the name of the random key for its dropout


@contextlib.contextmanager
def entering(dropout: float = 0.0) -> Iterator[None]:
    """Lets the collection `ADAPTER` of every `apply` inside the context take part.

    `dropout` is the rate before low-rank updates; if it is not 0, `apply` needs the key `ADAPTER`.
    """
    with nn.intercept_methods(_Hooks(dropout)):
        yield


class _Hooks:
    """The function around every method; see `flax.linen.intercept_methods`."""

    def __init__(self, dropout: float) -> None:
        self._dropout = dropout
        # The running attention's projection `out` takes this.
        self._mixed: dict[tuple[str, ...], Array] = {}
        self._hooks: dict[tuple[type, str], Callable[..., Any]] = {
            (nn.Dense, "__call__"): self._dense,
            (nn.LayerNorm, "__call__"): self._norm,
            (Attention, "__call__"): self._attention,
            (Attention, "_is_fused"): self._is_fused,
            (Attention, "_mixed"): self._mix,
            (Attention, "_query_key_value"): self._query_key_value,
            (Mlp, "__call__"): self._mlp,
            (Block, "__call__"): self._block,
            (VisionTransformer, "_tokens"): self._tokens,
            (VisionTransformer, "_pool"): self._pool,
        }

    def __call__(self, call: Next, args: Any, kwargs: Any, context: nn.module.InterceptorContext):
        # A lifted class (`nn.remat`) is a subclass and calls the class itself inside.
        hook = self._hooks.get((type(context.module), context.method_name))
        if hook is None or context.module.scope is None:
            return call(*args, **kwargs)
        return hook(context.module, call, *args, **kwargs)

    def _dense(self, module: nn.Dense, call: Next, x: Array) -> Array:
        return self._updated(module, "kernel", x, call(x))

    def _norm(self, module: nn.LayerNorm, call: Next, x: Array) -> Array:
        out = call(x)
        if module.name == "inner_norm":
            self._mixed[module.path[:-1]] = out
        return out

    def _attention(self, module: Attention, call: Next, x_BLD: Array, *args: Any) -> Array:
        out_BLD = call(x_BLD, *args)
        mixed_BLD = self._mixed.pop(module.path, None)
        if mixed_BLD is not None:
            out_BLD = self._updated(module, "out", mixed_BLD, out_BLD)
        return _bottleneck(module, out_BLD)

    def _is_fused(self, module: Attention, call: Next, *args: Any) -> bool:
        return not any(True for _ in _entries(module)) and call(*args)

    def _mix(self, module: Attention, call: Next, x_BLD: Array, context: Context) -> Array:
        prefix_key = _entry(module, "prefix_key")
        if prefix_key is None:
            mixed_BLD = call(x_BLD, context)
        else:
            mixed_BLD = _mixed_with_prefix(module, x_BLD, context)
        self._mixed[module.path] = mixed_BLD
        return mixed_BLD

    def _query_key_value(
        self, module: Attention, call: Next, x_BLD: Array, *args: Any
    ) -> tuple[Array, ...]:
        found = call(x_BLD, *args)
        names = ("query", "key", "value")
        return tuple(
            self._updated(module, name, x_BLD, out_BLHK)
            for name, out_BLHK in zip(names, found, strict=True)
        )

    def _mlp(self, module: Mlp, call: Next, x_BLD: Array) -> Array:
        return _bottleneck(module, call(x_BLD))

    def _block(self, module: Block, call: Next, x_BLD: Array, *args: Any) -> Any:
        prompts_ND = _entry(module, "prompts")
        if prompts_ND is not None:
            count = len(prompts_ND)
            first = x_BLD.shape[1] - count if module.path[0] == "vision" else 1
            prompts_BND = _for_each_row(prompts_ND, x_BLD)
            x_BLD = jax.lax.dynamic_update_slice_in_dim(x_BLD, prompts_BND, first, axis=1)
        return call(x_BLD, *args)

    def _tokens(self, module: VisionTransformer, call: Next, images: Array) -> Array:
        x_BLD, prompts_ND = call(images), _entry(module, "prompts")
        if prompts_ND is None:
            return x_BLD
        return jnp.concatenate([x_BLD, _for_each_row(prompts_ND, x_BLD)], axis=1)

    def _pool(self, module: VisionTransformer, call: Next, x_BLD: Array, *args: Any) -> Any:
        prompts_ND = _entry(module, "prompts")
        end = x_BLD.shape[1] - (0 if prompts_ND is None else len(prompts_ND))
        return call(x_BLD[:, :end], *args)

    def _updated(self, module: nn.Module, name: str, x: Array, out: Array) -> Array:
        """Returns `out` plus the low-rank update of x: (…, in) -> the shape of `out`."""
        a, b = _entry(module, f"{name}_a"), _entry(module, f"{name}_b")
        if a is None or b is None:
            return out
        if self._dropout:
            kept = jax.random.bernoulli(module.make_rng(ADAPTER), 1 - self._dropout, x.shape)
            x = jnp.where(kept, x / (1 - self._dropout), 0)
        update = (x @ a.astype(x.dtype)) @ b.astype(x.dtype)
        return out + update.reshape(out.shape).astype(out.dtype)


def _entries(module: nn.Module) -> Iterator[str]:
    yield from module.variables.get(ADAPTER, {})


def _entry(module: nn.Module, name: str) -> Any:
    return module.get_variable(ADAPTER, name)


def _for_each_row(values_ND: Array, like_BLD: Array) -> Array:
    shape = (len(like_BLD), *values_ND.shape)
    return jnp.broadcast_to(values_ND.astype(like_BLD.dtype), shape)


def _bottleneck(module: nn.Module, x: Array) -> Array:
    down = _entry(module, "down")
    if down is None:
        return x
    down_bias, up, up_bias = (_entry(module, name) for name in ("down_bias", "up", "up_bias"))
    hidden = jax.nn.relu(x @ down.astype(x.dtype) + down_bias.astype(x.dtype))
    return x + hidden @ up.astype(x.dtype) + up_bias.astype(x.dtype)


def _mixed_with_prefix(module: Attention, x_BLD: Array, context: Context) -> Array:
    """Attention before its last projection, (B, L, D), to prefixes and to the tokens."""
    config, (batch, length, width) = module.config, x_BLD.shape
    query, key, value = module._query_key_value(x_BLD, context, width // config.heads)
    prefix_key, prefix_value = (_entry(module, f"prefix_{name}") for name in ("key", "value"))
    count = len(prefix_key)
    key = jnp.concatenate([_for_each_row(prefix_key, x_BLD), key], axis=1)
    value = jnp.concatenate([_for_each_row(prefix_value, x_BLD), value], axis=1)
    allowed = jnp.ones((1, 1, length, length), bool)
    if config.causal:
        allowed = jnp.tril(allowed)
    if context.mask is not None:
        allowed = allowed & context.mask
    mask = jnp.pad(allowed, ((0, 0), (0, 0), (0, 0), (count, 0)), constant_values=True)
    mixed = dot_product(query, key, value, False, mask, config.attention)
    return mixed.reshape(batch, length, width)
