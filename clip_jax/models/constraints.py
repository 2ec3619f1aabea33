"""Where the batch lives: the one thing that a module says about sharding."""

from __future__ import annotations

import jax
from jax.sharding import PartitionSpec

BATCH_AXES = ("data", "fsdp")  # mesh axes that split the batch


def constrain_batch(x: jax.Array) -> jax.Array:
    """(B, …) -> the same array, its batch split over the mesh's data and fsdp axes.

    Does nothing outside a mesh (`jax.set_mesh`) or on a mesh without these axes, so that modules
    run anywhere.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names and mesh.shape[axis] > 1)
    if not axes:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *[None] * (x.ndim - 1)))
