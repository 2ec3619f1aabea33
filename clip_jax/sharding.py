"""The mesh, and what lies where on it.

Axes ("data", "fsdp", "tensor"): the batch is split over data and fsdp together, parameters over
fsdp.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clip_jax.errors import UserError
from clip_jax.models.constraints import BATCH_AXES

AXES = ("data", "fsdp", "tensor")
FSDP_MIN_BYTES = (
    1 << 20
)  # smaller leaves are copied to every device: gathering them costs more than it saves


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Any = None) -> Mesh:
    """A mesh over all devices; one axis may be -1, which takes the rest.

    Raises `UserError` when the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [data, fsdp, tensor]
    spelt = f"mesh data={data} fsdp={fsdp} tensor={tensor}"
    if sizes.count(-1) > 1:
        raise UserError(f"{spelt}: only one axis may be -1")
    known = int(np.prod([size for size in sizes if size != -1]))
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // known
    if int(np.prod(sizes)) != len(devices):
        raise UserError(f"{spelt}: must multiply to the {len(devices)} devices there are")
    # jax.make_mesh defaults to Explicit axes, under which linen modules fail.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_spec() -> PartitionSpec:
    """Leading axis over data and fsdp, the rest whole."""
    return PartitionSpec(BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """`batch_spec` on a mesh."""
    return NamedSharding(mesh, batch_spec())


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises `UserError` when the batch cannot be split evenly over the mesh."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shards:
        lower = batch_size // shards * shards
        near = f"{lower} or {lower + shards}" if lower else f"{shards}"
        raise UserError(
            f"{key}={batch_size}: must be a multiple of data×fsdp={shards} devices, such as {near}"
        )


def leaf_spec(shape: tuple[int, ...], dtype: Any, fsdp: int) -> PartitionSpec:
    """The largest axis that fsdp divides is split, in leaves of at least `FSDP_MIN_BYTES`."""
    size_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if fsdp > 1 and size_bytes >= FSDP_MIN_BYTES:
        for axis in sorted(range(len(shape)), key=lambda i: -shape[i]):
            if shape[axis] % fsdp == 0:
                return PartitionSpec(*[None] * axis, "fsdp")
    return PartitionSpec()


def tree_shardings(mesh: Mesh, shapes: Any) -> Any:
    """A `NamedSharding` for each leaf of a tree of shapes.

    The rule looks at shapes alone, so that optimizer moments lie where their parameters lie.
    """

    def sharding(leaf: Any) -> NamedSharding:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return replicated(mesh)
        return NamedSharding(mesh, leaf_spec(leaf.shape, leaf.dtype, mesh.shape["fsdp"]))

    return jax.tree.map(sharding, shapes)


def global_batch(mesh: Mesh, host_batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """This process's rows of a batch -> global arrays, split over data and fsdp."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in host_batch.items()
    }
