"""Where activations live: the one thing that a module says about sharding."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")  # mesh axes that split the batch
TENSOR_AXIS = "tensor"  # mesh axis that splits heads, hidden units and the vocabulary


def constrain_batch(x: jax.Array, split: int | None = None) -> jax.Array:
    """(B, …) -> the same array, its batch over the mesh's data and fsdp axes, its axis `split` over
    the tensor axis; the others are whole.

    Does nothing outside a mesh (`jax.set_mesh`) or on a mesh without these axes, so that modules
    run anywhere. An axis that the devices do not divide stays whole.
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


def mesh_size(mesh: jax.sharding.AbstractMesh, axis: str) -> int:
    """Devices along an axis; 1 where there is none of that name."""
    return mesh.shape[axis] if axis in mesh.axis_names else 1
