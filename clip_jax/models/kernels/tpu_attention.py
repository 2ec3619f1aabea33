"""Fused attention for TPUs, for sequences so short that all scores of a head stay on the chip.

XLA writes the scores (B, H, L, N) to memory and reads them several times, forward and backward.
Here a program holds the heads of an image in on-chip memory, so that memory sees only queries,
keys, values and the result. Scores are computed transposed, (N, L): the statistics of a query are
then a row, which reduces along sublanes without a transpose, and of two transposed products in the
backward pass one remains. The backward pass recomputes the weights from the logarithms of the sums.

Shape letters: B batch, L queries, N keys, H heads, K head dimension.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec

from clip_jax.models.constraints import BATCH_AXES, TENSOR_AXIS, mesh_size
from clip_jax.models.remat import ATTENTION_PROJECTED, FUSED_ATTENTION

Array = jax.Array

_HIDDEN = -1e30  # score of a key that a query must not see
_LOG2E = math.log2(math.e)
_VMEM_BYTES = 64 << 20  # of 128 MiB
# A program takes several short sequences, since each start costs as much as hundreds of cycles.
_ROWS_PER_PROGRAM = 512


class _Options(NamedTuple):
    """Static arguments of the kernels."""

    heads: int
    causal: bool
    interpret: bool


def tpu_attention(
    query_BLHK: Array,
    key_BNHK: Array,
    value_BNHK: Array,
    causal: bool = False,
    key_mask_BN: Array | None = None,
    interpret: bool = False,
) -> Array:
    """Multi-head attention, (B, L, H, K), with the softmax in float32.

    Products take operands of the inputs' dtype and sum in float32. `key_mask_BN` is True for keys
    that may be attended to, at least one a row. Under a mesh (`jax.set_mesh`) the batch is split
    over data and fsdp, heads over tensor; the batch must divide. `interpret=True` runs the kernels
    anywhere, slowly. float32 products have full precision.
    """
    flat = tuple(x.reshape(*x.shape[:2], -1) for x in (query_BLHK, key_BNHK, value_BNHK))
    options = _Options(query_BLHK.shape[2], causal, interpret)
    return _on_mesh(flat, None, key_mask_BN, options).reshape(query_BLHK.shape)


def tpu_self_attention(
    projected: tuple[Array, Array, Array],
    biases_SD: Array,
    heads: int,
    causal: bool = False,
    key_mask_BL: Array | None = None,
    interpret: bool = False,
) -> Array:
    """As `tpu_attention`, (B, L, D), of queries, keys and values (B, L, D) and their biases (3, D),
    all of one dtype; D is heads times their width.

    Heads that are narrower than a row of registers would be padded, moved and copied as
    (…, H, K). The biases' gradients are sums over what the backward kernel has in its registers;
    outside of it they would be passes over memory.
    """
    options = _Options(heads, causal, interpret)
    return _on_mesh(projected, biases_SD, key_mask_BL, options)


def _on_mesh(
    arrays: tuple[Array, ...], biases_SD: Array | None, key_mask: Array | None, options: _Options
) -> Array:
    """Attention of the devices' shares, (B, L, H·K)."""
    hidden = None
    if key_mask is not None:
        hidden = jnp.where(key_mask, 0.0, _HIDDEN).astype(jnp.float32)[:, :, None]
    mesh = jax.sharding.get_abstract_mesh()
    batch_axes = tuple(axis for axis in BATCH_AXES if mesh_size(mesh, axis) > 1)
    tensor = mesh_size(mesh, TENSOR_AXIS)
    if not batch_axes and tensor == 1:
        return _attention(arrays, biases_SD, hidden, options)
    heads_axis = None
    if tensor > 1 and options.heads % tensor == 0:
        heads_axis, options = TENSOR_AXIS, options._replace(heads=options.heads // tensor)
    split = PartitionSpec(batch_axes or None, None, heads_axis)
    return jax.shard_map(
        functools.partial(_attention, options=options),
        in_specs=(
            (split,) * 3,
            None if biases_SD is None else PartitionSpec(None, heads_axis),
            None if hidden is None else PartitionSpec(batch_axes or None),
        ),
        out_specs=split,
        check_vma=False,
    )(arrays, biases_SD, hidden)


@functools.partial(jax.custom_vjp, nondiff_argnames=("options",))
def _attention(
    arrays: tuple[Array, ...], biases: Array | None, hidden: Array | None, options: _Options
) -> Array:
    """(B, L, H·K) from queries, and from keys and values (B, N, H·K)."""
    return _forward(_biased(arrays, biases), hidden, options)[0]


def _biased(arrays: tuple[Array, ...], biases: Array | None) -> tuple[Array, ...]:
    if biases is not None:
        arrays = tuple(x + bias for x, bias in zip(arrays, biases, strict=True))
    return tuple(checkpoint_name(x, ATTENTION_PROJECTED) for x in arrays)


def _attention_forward(
    arrays: tuple[Array, ...], biases: Array | None, hidden: Array | None, options: _Options
) -> tuple[Array, Any]:
    arrays = _biased(arrays, biases)
    results = _forward(arrays, hidden, options)
    mixed, log_sums = (checkpoint_name(x, FUSED_ATTENTION) for x in results)
    return mixed, (arrays, biases, hidden, log_sums)


def _attention_backward(options: _Options, saved: Any, gradient: Array) -> tuple[Any, ...]:
    arrays, biases, hidden, log_sums = saved
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in arrays]
    if biases is not None:
        batch, width = len(gradient), gradient.shape[-1]
        shapes.append(jax.ShapeDtypeStruct((batch, 3, width), jnp.float32))
    inputs = [*arrays, gradient, log_sums]
    gradients = _call(_backward_kernel, inputs, hidden, shapes, options)
    of_biases = None if biases is None else gradients[3].sum(0).astype(biases.dtype)
    of_hidden = None if hidden is None else jnp.zeros_like(hidden)
    return tuple(gradients[:3]), of_biases, of_hidden


_attention.defvjp(_attention_forward, _attention_backward)


def _forward(arrays: tuple[Array, ...], hidden: Array | None, options: _Options) -> list[Array]:
    """Returns the result (B, L, H·K) and base-2 logarithms of the sums (B, H, L) float32."""
    batch, length, _ = arrays[0].shape
    mixed = jax.ShapeDtypeStruct(arrays[0].shape, arrays[0].dtype)
    log_sums = jax.ShapeDtypeStruct((batch, options.heads, length), jnp.float32)
    return _call(_forward_kernel, list(arrays), hidden, [mixed, log_sums], options)


def _call(
    kernel: Callable[..., None],
    arrays: list[Array],
    hidden: Array | None,
    shapes: list[jax.ShapeDtypeStruct],
    options: _Options,
) -> list[Array]:
    """Runs a kernel over the batch, a few images a program."""
    arrays = arrays if hidden is None else [*arrays, hidden]
    batch = len(arrays[0])
    most = max(1, _ROWS_PER_PROGRAM // max(x.shape[1] for x in arrays[:3]))
    images = next(n for n in range(min(batch, most), 0, -1) if batch % n == 0)

    def block(x: Any) -> pl.BlockSpec:
        return pl.BlockSpec((images, *x.shape[1:]), lambda program: (program, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, options=options, masked=hidden is not None),
        grid=(batch // images,),
        in_specs=[block(x) for x in arrays],
        out_specs=[block(x) for x in shapes],
        out_shape=shapes,
        interpret=options.interpret,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=_VMEM_BYTES
        ),
        cost_estimate=_cost(arrays, shapes, kernel is _backward_kernel, options.heads),
    )(*arrays)


def _cost(arrays: list[Array], shapes: list[Any], backward: bool, heads: int) -> pl.CostEstimate:
    """Work of one call on padded shapes, for the compiler's scheduler and pre-flight.

    Scores are tiles of 8 keys and 128 queries; a head fills a matrix unit's 128 rows or leaves
    them empty.
    """
    (batch, length, width), keys = arrays[0].shape, arrays[1].shape[1]
    scores = batch * heads * _padded(keys, 8) * _padded(length, 128)
    return pl.CostEstimate(
        flops=2 * scores * _padded(width // heads, 128) * (5 if backward else 2),
        bytes_accessed=sum(math.prod(x.shape) * x.dtype.itemsize for x in (*arrays, *shapes)),
        transcendentals=scores,
    )


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _dot(left: Array, right: Array, contract: tuple[int, int]) -> Array:
    """A matrix product over one axis of each, summed in float32."""
    # By default, float32 operands would be rounded to bfloat16.
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return jax.lax.dot_general(
        left, right, axes, precision=precision, preferred_element_type=jnp.float32
    )


def _scores(query: Array, key: Array, hidden_N1: Array | None, causal: bool) -> Array:
    """Scores (N, L), scaled to powers of two."""
    scores = _dot(key, query, (1, 1)) * (query.shape[-1] ** -0.5 * _LOG2E)
    if hidden_N1 is not None:
        scores += hidden_N1
    if causal:
        of_key = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
        of_query = jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1)
        scores = jnp.where(of_key <= of_query, scores, _HIDDEN)
    return scores


def _each_head(query_ref: Any, heads: int, body: Callable[[Any, int, Any], None]) -> None:
    """Calls `body(image, head, lanes)` for the images of a program and their heads."""
    images, _, width = query_ref.shape
    head_dim = width // heads

    def of_image(image: Any, carry: int) -> int:
        for head in range(heads):
            body(image, head, pl.ds(head * head_dim, head_dim))
        return carry

    if images == 1:
        of_image(0, 0)
    else:
        jax.lax.fori_loop(0, images, of_image, 0)


def _forward_kernel(
    query_ref: Any, key_ref: Any, value_ref: Any, *refs: Any, options: _Options, masked: bool
) -> None:
    *hidden_ref, mixed_ref, log_sum_ref = refs

    def body(image: Any, head: int, lanes: Any) -> None:
        """Writes one head's result and the logarithms of its sums."""
        query, key, value = (ref[image, :, lanes] for ref in (query_ref, key_ref, value_ref))
        hidden = hidden_ref[0][image] if masked else None
        scores = _scores(query, key, hidden, options.causal)
        greatest = scores.max(0, keepdims=True)
        weights = jnp.exp2(scores - greatest)
        total = weights.sum(0, keepdims=True)
        mixed_KL = _dot(value, weights.astype(value.dtype), (0, 0)) * (1 / total)
        mixed_ref[image, :, lanes] = mixed_KL.T.astype(mixed_ref.dtype)
        log_sum_ref[image, pl.ds(head, 1), :] = greatest + jnp.log2(total)

    _each_head(query_ref, options.heads, body)


def _backward_kernel(
    query_ref: Any, key_ref: Any, value_ref: Any, gradient_ref: Any, log_sum_ref: Any, *refs: Any,
    options: _Options, masked: bool,
) -> None:  # fmt: skip
    inputs = (query_ref, key_ref, value_ref, gradient_ref)
    outputs = refs[masked:]

    def body(image: Any, head: int, lanes: Any) -> None:
        """Writes one head's gradients."""
        query, key, value, gradient = (ref[image, :, lanes] for ref in inputs)
        hidden = refs[0][image] if masked else None
        scores = _scores(query, key, hidden, options.causal)
        weights = jnp.exp2(scores - log_sum_ref[image, pl.ds(head, 1), :])
        of_value = _dot(weights.astype(gradient.dtype), gradient, (1, 0))
        of_weights = _dot(value, gradient, (1, 1))
        of_scores = weights * (of_weights - (weights * of_weights).sum(0, keepdims=True))
        of_scores = (of_scores * query.shape[-1] ** -0.5).astype(query.dtype)
        of_query = _dot(of_scores, key, (0, 0))
        of_key = _dot(of_scores, query, (1, 0))
        for part, result in enumerate((of_query, of_key, of_value)):
            outputs[part][image, :, lanes] = result.astype(outputs[part].dtype)
            if len(outputs) == 4:  # the gradients of the biases, an image's sums
                outputs[3][image, pl.ds(part, 1), lanes] = result.sum(0, keepdims=True)

    _each_head(query_ref, options.heads, body)
