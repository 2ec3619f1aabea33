"""Sharding constraints on activations, the only sharding that modules declare."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")  # mesh axes that split the batch
TENSOR_AXIS = "tensor"  # mesh axis that splits heads, hidden units and the vocabulary


def constrain_batch(x: jax.Array, split: int | None = None) -> jax.Array:
    """Shards an array's batch axis over data and fsdp, and its axis `split` over tensor.

    All other axes are replicated. Does nothing outside a mesh (`jax.set_mesh`) or on a mesh without
    these axes, so that modules run anywhere. An axis whose size the devices do not divide stays
    whole.
    """
    mesh = jax.sharding.get_abstract_mesh()
    batch = tuple(axis for axis in BATCH_AXES if mesh_size(mesh, axis) > 1)
    tensor = mesh_size(mesh, TENSOR_AXIS)
    if not batch and tensor == 1:
        return x
    spec: list[tuple[str, ...] | str | None] = [batch or None, *[None] * (x.ndim - 1)]
    if split is not None and tensor > 1 and x.shape[split] % tensor == 0:
        spec[split] = TENSOR_AXIS
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


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
