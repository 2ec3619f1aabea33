"""Checks for defects of a sharded training step: batches gathered on every device, and optimizer
state that every device holds whole."""

import math

import numpy as np

from clip_jax.preflight.compile import Run
from clip_jax.preflight.hlo.counting import Collective, Cost
from clip_jax.sharding import FSDP_MIN_BYTES, STACKED, batch_shards, leaves_by_path


def batch_gathers(run: Run, cost: Cost) -> tuple[Collective, ...]:
    """All-gathers of activations over the batch in a train step, largest first.

    Such an all-gather grows an axis that holds a device's rows of the batch, or a multiple of them.
    Its result is larger than the (B, D) embeddings, which every loss may gather, and has not the
    size of a parameter or of one layer of it.
    """
    rows = run.config.batch_size
    parts = run.config.optimizer.microbatches
    here = rows // parts // batch_shards(run.mesh)
    parameters = _parameter_sizes(run)
    found = []
    for collective in cost.collectives:
        if collective.kind != "all-gather" or not collective.dims:
            continue
        axis = collective.dims[0]
        for part, whole in zip(collective.operands, collective.results, strict=False):
            is_batch = part.dims[axis] % here == 0 and part.dims[axis] < whole.dims[axis]
            is_large = whole.elements > rows * run.architecture.embed_dim
            if is_batch and is_large and whole.elements not in parameters:
                found.append(collective)
                break
    return tuple(sorted(found, key=lambda c: -c.bytes * c.trips))


def _parameter_sizes(run: Run) -> set[int]:
    """Element counts of every parameter, of one layer of stacked ones, and of the tensor-parallel
    shard of either."""
    sizes = set()
    for path, leaf in leaves_by_path((run.state.params, run.state.base)).items():
        layer = [leaf.shape[1:]] if STACKED.search(path) else []
        for shape in (leaf.shape, *layer):
            sizes |= {math.prod(shape), math.prod(shape) // run.mesh.shape["tensor"]}
    return sizes


def whole_optimizer_leaves(run: Run) -> dict[str, int]:
    """{path: bytes} of optimizer leaves that every device holds whole although they could be split;
    empty if parameters are not sharded at all."""
    if run.mesh.shape["fsdp"] * run.mesh.shape["tensor"] == 1:
        return {}
    found = {}
    for path, leaf in leaves_by_path(run.state.opt_state).items():
        size = math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize
        if size >= FSDP_MIN_BYTES and leaf.sharding.is_fully_replicated:
            found[path] = size
    return found
