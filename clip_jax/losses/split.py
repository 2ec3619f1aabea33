"""Split of a loss's rows over the ambient mesh, and the collectives between the parts."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax import lax
from jax.sharding import AxisType, PartitionSpec

from clip_jax.models.constraints import BATCH_AXES, TENSOR_AXIS

Array = jax.Array


@dataclass(frozen=True)
class Split:
    """Split of rows into equal parts over mesh axes of these sizes; without axes, one part.

    The methods below `run` are collectives: every part calls them, inside the function passed to
    `run`. With one part they do nothing.
    """

    axes: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()

    @property
    def shards(self) -> int:
        """The number of parts."""
        return math.prod(self.sizes)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """The axes that split the batch outside the loss too."""
        return tuple(axis for axis in self.axes if axis in BATCH_AXES)

    @property
    def batch_shards(self) -> int:
        """The number of parts outside the loss."""
        return math.prod(self.sizes[: len(self.batch_axes)])

    def run(
        self,
        function: Callable[..., tuple[Array, tuple[Array | None, ...]]],
        matrices: tuple[Array | None, ...],
        scalars: tuple[Array | None, ...],
    ) -> tuple[Array, tuple[Array | None, ...]]:
        """Runs `function(self, *matrices, *scalars)` on every part: (value, gradients).

        A part gets its rows of the (B, …) matrices, of which some may be None, and returns their
        gradients. The scalars, their gradients and the value are the same on all parts.
        """
        if not self.axes:
            return function(self, *matrices, *scalars)
        rows, whole = PartitionSpec(self.axes), PartitionSpec()
        specs = (rows,) * len(matrices) + (whole,) * len(scalars)
        value, gradients = jax.shard_map(
            lambda *arrays: function(self, *arrays), in_specs=specs, out_specs=(whole, specs)
        )(*map(self._constrain, matrices), *scalars)
        count = len(matrices)
        return value, (*map(self._constrain, gradients[:count]), *gradients[count:])

    def _constrain(self, x: Array | None) -> Array | None:
        # The split over the tensor axis is for the loss only and must not spread into the towers.
        spec = PartitionSpec(self.batch_axes)
        return None if x is None else lax.with_sharding_constraint(x, spec)

    def index(self) -> Array | int:
        """The number of this part."""
        return lax.axis_index(self.axes) if self.axes else 0

    def varying(self, tree: Any) -> Any:
        """Marks constants as values that may differ between parts, as a scan's carry must be."""
        return lax.pcast(tree, self.axes, to="varying") if self.axes else tree

    def sum(self, x: Array) -> Array:
        """The sum over the parts."""
        return lax.psum(x, self.axes) if self.axes else x

    def max(self, x: Array) -> Array:
        """The maximum over the parts."""
        return lax.pmax(x, self.axes) if self.axes else x

    def gather(self, x: Array) -> Array:
        """(C, …) of each part -> (shards·C, …), in the order of the parts."""
        return lax.all_gather(x, self.axes, tiled=True) if self.axes else x

    def sum_scatter(self, x: Array) -> Array:
        """(shards·C, …) of each part -> (C, …) summed over the parts; transpose of `gather`."""
        return lax.psum_scatter(x, self.axes, tiled=True) if self.axes else x

    def send_on(self, tree: Any) -> Any:
        """Sends arrays to the next part, the last to the first; returns those received."""
        ring = [(part, (part + 1) % self.shards) for part in range(self.shards)]
        return jax.tree.map(lambda x: lax.ppermute(x, self.axes, ring), tree)


def ambient_split(rows: int) -> Split:
    """Returns the split of that many rows over the mesh of `jax.set_mesh`.

    Uses the batch axes, then the tensor axis, on which embeddings are replicated. Skips an axis
    that does not divide the rows; its devices then do the same work.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    split = Split()
    for axis in (*BATCH_AXES, TENSOR_AXIS):
        size = mesh.shape[axis] if kinds.get(axis) == AxisType.Auto else 1
        if size > 1 and rows % (split.shards * size) == 0:
            split = Split((*split.axes, axis), (*split.sizes, size))
    return split
