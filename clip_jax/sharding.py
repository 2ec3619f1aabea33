"""Device mesh, and the sharding of arrays on it.

Axes ("data", "fsdp", "tensor"): the batch is split over data and fsdp together, parameters and
optimizer state over fsdp, and heads, hidden units and the vocabulary over tensor.
"""

import re
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from clip_jax.errors import UserError
from clip_jax.models.constraints import BATCH_AXES, TENSOR_AXIS

AXES = ("data", "fsdp", "tensor")
# Smaller leaves are replicated, because gathering them costs more than it saves.
FSDP_MIN_BYTES = 1 << 18

# The first pattern that matches a leaf's path gives the spec of its last axes. Scanned blocks have
# a layer axis before these, which is never split. `fsdp` then takes the largest remaining axis that
# it divides.
Spec = tuple[str | None, ...]
TENSOR_RULES: tuple[tuple[re.Pattern[str], Spec], ...] = tuple(
    (re.compile(pattern), spec)
    for pattern, spec in (
        (r"/query_key_value$", (None, None, TENSOR_AXIS, None)),  # (D, 3, H, K)
        (r"/query_key_value_bias$", (None, TENSOR_AXIS, None)),  # (3, H, K)
        (r"/attention/key_value$", (None, None, TENSOR_AXIS, None)),  # (C, 2, H, K)
        (r"/attention/query$", (None, TENSOR_AXIS, None)),  # (D, H, K)
        (r"/(attention|mixer)/out$", (TENSOR_AXIS, None, None)),  # (H, K, D)
        (r"/mlp/(in|gate)/kernel$", (None, TENSOR_AXIS)),  # (D, M)
        (r"/mlp/(in|gate)/bias$", (TENSOR_AXIS,)),  # (M,)
        (r"/mlp/out/kernel$", (TENSOR_AXIS, None)),  # (M, D)
        (r"/attention_pool/(query|key|value)/kernel$", (None, TENSOR_AXIS)),  # (C, H·K), ResNet
        (r"/attention_pool/(query|key|value)/bias$", (TENSOR_AXIS,)),
        (r"/attention_pool/out/kernel$", (TENSOR_AXIS, None)),  # (H·K, D), ResNet
        (r"/token_embedding$", (TENSOR_AXIS, None)),  # (V, D)
        (r"^(.*/)?decoder/head$", (None, TENSOR_AXIS)),  # (D, V)
        (r"", ()),
    )
)
STACKED = re.compile(r"(^|/)blocks/")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Any = None) -> Mesh:
    """Builds a mesh over all devices; one axis may be -1, which takes the rest.

    If the devices form several slices (TPU pods joined by a data-centre network), only the data
    axis runs across them. Raises `UserError` if the sizes do not multiply to the number of devices,
    or the number of slices does not divide the data axis.
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
    # Each host of a GPU cluster has a slice_index too, but fsdp may cross the network between them.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices and devices[0].platform != "tpu":
        slices = 1
    if sizes[0] % slices:
        raise UserError(f"{spelt}: data must be a multiple of the {slices} slices of devices")
    # Physical axes must be split for a mesh axis such as 16 on a torus of 8 × 8 × 4 chips; jax does
    # not do so by default.
    if slices == 1:
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        placed = mesh_utils.create_hybrid_device_mesh(
            (sizes[0] // slices, *sizes[1:]),
            (slices, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    # The default axis type, Explicit, breaks linen modules.
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: leading axis over data and fsdp, the rest whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding with a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_shards(mesh: Mesh) -> int:
    """Number of parts that a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(mesh: Mesh, batch_size: int, key: str, parts: int = 1) -> None:
    """Raises `UserError` if the mesh cannot split the batch, or each of its `parts`, evenly."""
    shards = batch_shards(mesh)
    if batch_size % (shards * parts):
        lower = batch_size // (shards * parts) * shards * parts
        near = f"{lower} or {lower + shards * parts}" if lower else f"{shards * parts}"
        divided = f"data×fsdp={shards} devices" + (f" × {parts} micro-batches" if parts > 1 else "")
        raise UserError(f"{key}={batch_size}: must be a multiple of {divided}, such as {near}")


def leaf_spec(path: str, shape: tuple[int, ...], dtype: Any, mesh: Any) -> PartitionSpec:
    """PartitionSpec of one leaf on a mesh (or anything with its `shape`).

    Applies the first matching rule of `TENSOR_RULES`, then, for leaves of at least
    `FSDP_MIN_BYTES`, gives fsdp the largest free axis that it divides. `path` is joined by "/"; an
    optimizer moment's path ends in its parameter's, so that both are sharded alike.
    """
    free = list(range(len(shape)))
    spec: list[str | None] = [None] * len(shape)
    if STACKED.search(path) and len(shape) > 1:
        free.remove(0)
    rule = next(spec for pattern, spec in TENSOR_RULES if pattern.search(path))
    if len(rule) <= len(free):  # a factored moment has fewer axes than its parameter
        for axis, name in enumerate(rule, start=len(shape) - len(rule)):
            if name and mesh.shape[name] > 1 and shape[axis] % mesh.shape[name] == 0:
                spec[axis] = name
                free.remove(axis)
    fsdp, size_bytes = mesh.shape["fsdp"], int(np.prod(shape)) * np.dtype(dtype).itemsize
    if fsdp > 1 and size_bytes >= FSDP_MIN_BYTES:
        for axis in sorted(free, key=lambda axis: -shape[axis]):
            if shape[axis] % fsdp == 0:
                spec[axis] = "fsdp"
                break
    while spec and spec[-1] is None:
        spec.pop()
    return PartitionSpec(*spec)


def path_of(path: Any) -> str:
    """Formats a path of jax's tree functions as text, such as "vision/patch_embedding"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """Returns {path: leaf} of any tree."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def tree_specs(mesh: Any, shapes: Any) -> Any:
    """Returns a `PartitionSpec` for each leaf of a tree of parameters or optimizer state."""

    def spec(path: Any, leaf: Any) -> PartitionSpec:
        if _is_key(leaf):
            return PartitionSpec()
        return leaf_spec(path_of(path), leaf.shape, leaf.dtype, mesh)

    return jax.tree_util.tree_map_with_path(spec, shapes)


def tree_shardings(mesh: Mesh, shapes: Any) -> Any:
    """Returns `tree_specs` as shardings on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), tree_specs(mesh, shapes))


def constrain_like_params(tree: Any) -> Any:
    """Constrains each leaf of a tree inside jit to its parameter's sharding.

    `tree` holds parameters or gradients. Does nothing outside a mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, tree_specs(mesh, tree))


def explain(mesh: Mesh, shapes: Any) -> str:
    """Formats a table of each leaf's path, shape, dtype, spec and bytes per device, and the sum."""
    rows, total, total_here = [("name", "shape", "dtype", "spec", "bytes a device")], 0, 0
    for name, leaf in leaves_by_path(shapes).items():
        if _is_key(leaf):
            continue
        sharding = NamedSharding(mesh, leaf_spec(name, leaf.shape, leaf.dtype, mesh))
        item = np.dtype(leaf.dtype).itemsize
        here = int(np.prod(sharding.shard_shape(leaf.shape))) * item
        total, total_here = total + int(np.prod(leaf.shape)) * item, total_here + here
        split = ", ".join(str(axis or "-") for axis in sharding.spec) or "whole"
        rows.append((name, str(tuple(leaf.shape)), str(leaf.dtype), split, f"{here:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False))
        + f"  {row[-1]:>{widths[-1]}}"
        for row in rows
    ]
    sizes = " × ".join(f"{name} {size}" for name, size in mesh.shape.items())
    lines.append(f"{total_here:,} of {total:,} bytes a device, mesh {sizes}")
    return "\n".join(lines)


def global_batch(mesh: Mesh, host_batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """Builds global arrays, split over data and fsdp, from this process's rows of a batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows)
        for name, rows in host_batch.items()
    }


def host_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> list[int]:
    """Returns the rows of a global batch that a process (default: this one) makes, in order.

    The rows follow from the placement of devices on the mesh, which need not be in process order;
    processes that share a tensor axis make the same rows. Raises `UserError` if two processes
    would hold overlapping but different rows, or different numbers of parts.
    """
    where: Any = batch_sharding(mesh).devices_indices_map((batch_size,))
    shares: dict[int, set[tuple[int, int]]] = {}
    for device, (part,) in where.items():
        start, stop, _ = part.indices(batch_size)
        shares.setdefault(device.process_index, set()).add((start, stop))
    mine = shares[jax.process_index() if process is None else process]
    for index, share in shares.items():
        if len(share) != len(mine) or (share != mine and share & mine):
            sizes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
            raise UserError(
                f"mesh {sizes}: the devices of process {index} would hold a part of the batch "
                "that another process holds only half of; choose tensor as a divisor or a multiple "
                "of the devices a process"
            )
    return [row for start, stop in sorted(mine) for row in range(start, stop)]
