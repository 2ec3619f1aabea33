"""Constraints on activations: their sharding, the only one that modules declare, and on TPUs where
they lie in memory."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")  # mesh axes that split the batch
TENSOR_AXIS = "tensor"  # mesh axis that splits heads, hidden units and the vocabulary
_SUBLANES = 8  # rows of a TPU's tile, to which tokens are padded
_MOST_PADDING = 0.05  # share of the tokens


class Device(NamedTuple):
    """Platform and kind of the devices that a program is for."""

    platform: str  # "tpu", "gpu" or "cpu"
    kind: str  # jax's name, such as "TPU v5 lite"


def target_device() -> Device:
    """The mesh's device, such as one of an absent slice in pre-flight; without a mesh, ours."""
    described = jax.sharding.get_abstract_mesh().abstract_device
    if described is not None:
        return Device(described.platform, described.device_kind)
    return Device(jax.default_backend(), jax.devices()[0].device_kind)


def materialize(x: jax.Array) -> jax.Array:
    """On a TPU, computes `x` once and stores it.

    Otherwise XLA computes an activation again for each tile of the product that follows, in which
    the matrix unit waits: the MLP's second product took twice its time.
    """
    return jax.lax.optimization_barrier(x) if target_device().platform == "tpu" else x


def constrain_batch(x: jax.Array, split: int | None = None) -> jax.Array:
    """Shards an array's batch axis over data and fsdp, and its axis `split` over tensor.

    All other axes are replicated. Does nothing outside a mesh (`jax.set_mesh`) or on a mesh without
    these axes, so that modules run anywhere. An axis whose size the devices do not divide stays
    whole.

    On a TPU, (B, L, D) also lies row by row unless that pads many tokens. Left alone, the compiler
    swaps batch and tokens where 257 tokens would be padded to 264, and copies at each kernel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    batch = tuple(axis for axis in BATCH_AXES if mesh_size(mesh, axis) > 1)
    tensor = mesh_size(mesh, TENSOR_AXIS)
    is_split = bool(batch) or tensor > 1
    spec: list[tuple[str, ...] | str | None] = [batch or None, *[None] * (x.ndim - 1)]
    if split is not None and tensor > 1 and x.shape[split] % tensor == 0:
        spec[split] = TENSOR_AXIS
    if is_split:
        x = jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))
    if x.ndim != 3 or target_device().platform != "tpu":
        return x
    if -x.shape[1] % _SUBLANES > _MOST_PADDING * x.shape[1]:
        return x
    if not is_split:
        return _row_by_row(x)
    if x.shape[0] % math.prod(mesh.shape[axis] for axis in batch):
        return x
    # The partitioner would gather the whole array for a constraint on its layout.
    return jax.shard_map(
        _row_by_row, in_specs=PartitionSpec(*spec), out_specs=PartitionSpec(*spec), check_vma=False
    )(x)


def _row_by_row(x: jax.Array) -> jax.Array:
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def embed(table_VD: jax.Array, tokens_BL: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """(V, D), (B, L) int -> (B, L, D): looks up rows of a table, the batch over data and fsdp.

    The table is gathered over fsdp before the lookup, in the compute dtype. By itself the
    partitioner looks up rows of a table split by columns, and then gathers the results for the
    whole batch. The vocabulary stays split over the tensor axis.
    """
    table_VD = table_VD.astype(dtype)
    mesh = jax.sharding.get_abstract_mesh()
    tensor = mesh_size(mesh, TENSOR_AXIS)
    if tensor > 1 or any(mesh_size(mesh, axis) > 1 for axis in BATCH_AXES):
        rows = TENSOR_AXIS if tensor > 1 and len(table_VD) % tensor == 0 else None
        table_VD = jax.lax.with_sharding_constraint(table_VD, PartitionSpec(rows, None))
    return constrain_batch(jnp.take(table_VD, tokens_BL, axis=0))


def mesh_size(mesh: jax.sharding.AbstractMesh, axis: str) -> int:
    """Number of devices along an axis; 1 if the mesh has no such axis."""
    return mesh.shape[axis] if axis in mesh.axis_names else 1
