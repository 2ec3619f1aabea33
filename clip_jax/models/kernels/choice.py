"""Choice of the implementation of attention: XLA's, cuDNN's on GPUs, our own on TPUs.

Shape letters: B batch, L queries, N keys, H heads, K head dimension.
"""

import functools
import logging
from typing import Any, Literal

import jax
import jax.numpy as jnp

from clip_jax.errors import UserError
from clip_jax.models.constraints import BATCH_AXES, TENSOR_AXIS, Device, mesh_size, target_device

Array = jax.Array
Kernel = Literal["xla", "cudnn", "tpu"]
# The on-chip memory of older generations is too small.
_TPU_KINDS = ("TPU v4", "TPU v5", "TPU v6", "TPU7x")
LONGEST = 1024  # tokens; the scores of a head must fit on the chip several times
_SHORTEST = 16  # fewer, as in decoding or a pooling head, are no work for a kernel


def dot_product(
    query_BLHK: Array,
    key_BNHK: Array,
    value_BNHK: Array,
    causal: bool,
    mask: Array | None,
    wanted: str,
) -> Array:
    """Multi-head attention, (B, L, H, K), with a softmax in float32, by the kernel that `choose`
    chooses. `mask` is bool, broadcastable to (B, H, L, N): True may be attended to."""
    kernel = choose(wanted, query_BLHK, key_BNHK, mask)
    if kernel == "tpu":
        # Pallas takes half a second to import, and only a TPU needs it.
        from clip_jax.models.kernels.tpu_attention import tpu_attention

        of_keys = None if mask is None else key_mask(mask, key_BNHK)
        return tpu_attention(query_BLHK, key_BNHK, value_BNHK, causal, of_keys)
    return jax.nn.dot_product_attention(
        query_BLHK, key_BNHK, value_BNHK, mask=mask, is_causal=causal, implementation=kernel
    )


def key_mask(mask: Array, keys: Array) -> Array:
    """(B or 1, 1, 1, N) -> (B, N), for keys (B, N, …)."""
    return jnp.broadcast_to(mask[:, 0, 0], keys.shape[:2])


def choose(wanted: str, query_BLHK: Any, key_BNHK: Any, mask: Array | None) -> Kernel:
    """Chooses the implementation; all have a float32 softmax.

    "auto" is cuDNN's fused kernel on an NVIDIA GPU of the Ampere generation or later, ours on a TPU
    v4 or later, where dtype, shapes and mask allow it, else XLA. Raises `UserError` if "cudnn" or
    "tpu" is wanted but unavailable.
    """
    if wanted == "xla":
        return "xla"
    device = target_device()
    reasons = {
        "cudnn": _no_cudnn(device, query_BLHK, mask),
        "tpu": _no_tpu(device, query_BLHK, key_BNHK, mask),
    }
    if wanted != "auto":
        if reason := reasons[wanted]:
            raise UserError(f"attention={wanted!r}: {reason}; accepted here: 'auto' or 'xla'")
        return "cudnn" if wanted == "cudnn" else "tpu"
    if reasons["cudnn"] is None:
        return "cudnn"
    if reasons["tpu"] is None:
        return "tpu"
    if device.platform == "tpu" and query_BLHK.shape[1] >= _SHORTEST:
        _say_once(f"attention of {query_BLHK.shape[1]} tokens by XLA: {reasons['tpu']}")
    return "xla"


@functools.cache
def _say_once(message: str) -> None:
    logging.info(message)


def _no_cudnn(device: Device, query_BLHK: Any, mask: Array | None) -> str | None:
    """Returns why cuDNN's kernel cannot run, or None."""
    head_dim, dtype = query_BLHK.shape[-1], query_BLHK.dtype
    if device.platform != "gpu":
        return f"there is no GPU, but {device.platform}"
    if float(getattr(jax.devices()[0], "compute_capability", 0)) < 8.0:
        return f"{device.kind} is older than Ampere"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"dtype is {dtype}, needs bfloat16"
    if head_dim % 8 or head_dim > 128:
        return f"heads are {head_dim} wide, needs a multiple of 8 up to 128"
    return None if mask is None else "a mask of the padding is needed"


def _no_tpu(device: Device, query: Any, key: Any, mask: Array | None) -> str | None:
    """Returns why our kernel for TPUs cannot run, or None."""
    (batch, length, heads, head_dim), keys = query.shape, key.shape[1]
    if device.platform != "tpu":
        return f"there is no TPU, but {device.platform}"
    if not device.kind.startswith(_TPU_KINDS):
        return f"{device.kind} has too little memory on the chip, needs v4 or later"
    if query.dtype != jnp.bfloat16:
        return f"dtype is {query.dtype}, needs bfloat16"
    if head_dim % 8 or not 32 <= head_dim <= 128:
        return f"heads are {head_dim} wide, needs a multiple of 8 from 32 to 128"
    if not (_SHORTEST <= length <= LONGEST and _SHORTEST <= keys <= LONGEST):
        return f"{length} tokens and {keys} keys, needs {_SHORTEST} to {LONGEST}"
    if mask is not None and mask.shape[1:3] != (1, 1):
        return "the mask differs between queries"
    mesh = jax.sharding.get_abstract_mesh()
    splits = {"batch": 1, "heads": mesh_size(mesh, TENSOR_AXIS)}
    for axis in BATCH_AXES:
        splits["batch"] *= mesh_size(mesh, axis)
    for size, (what, parts) in zip((batch, heads), splits.items(), strict=True):
        if size % parts:
            return f"{size} {what} do not divide by the mesh's {parts}"
    return None
