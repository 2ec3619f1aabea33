"""Memory, arithmetic and communication of the losses, compiled for TPUs that need not be there.

    python benchmarks/loss_memory.py --topologies=v5e:2x2,v5e:4x4,v5e:16x16

Compiles value and gradient (of both embeddings, scale and bias) of each loss and implementation,
rows over all chips, as a training step does. Prints one JSON object: temporaries of a chip beside
arguments and results, in MiB of HBM; arithmetic of a chip over that of one block of logits, forward
and backward (3·2·(B/chips)·B·D); what each collective runs and carries. Loops count as often as
they run. What fits into a chip's on-chip memory shows as no HBM at all. One more row is `chunked`
on one device, at --largest pairs. About 15 s a row on two cores.
"""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from clip_jax.losses import IMPLEMENTATIONS, effective_implementation, sigmoid_loss, softmax_loss
from clip_jax.preflight.hlo.counting import program_cost
from clip_jax.preflight.topology import find_target
from clip_jax.sharding import batch_sharding, make_mesh, replicated

LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
MIB = 2**20
# Temporaries of a chip, at 32,768 pairs of width 768.
LIMITS_MIB = {
    ("v5e:4x4", "softmax", "dense"): 310,
    ("v5e:4x4", "softmax", "ring"): 60,
    ("v5e:4x4", "sigmoid", "ring"): 10,
}
LARGEST_LIMIT_MIB = 2048  # at 131,072 pairs on one device
FLOPS_LIMIT = 1.1  # of dense, in blocks

_TOPOLOGIES = flags.DEFINE_list("topologies", ["v5e:4x4"], "As clip_jax.preflight takes them.")
_LOSSES = flags.DEFINE_multi_enum("losses", list(LOSSES), list(LOSSES), "Repeat for several.")
_IMPLEMENTATIONS = flags.DEFINE_multi_enum(
    "implementations", list(IMPLEMENTATIONS), list(IMPLEMENTATIONS), "Repeat for several."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32768, "Pairs of all chips.", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 768, "Of an embedding.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the embeddings.")
_LARGEST = flags.DEFINE_integer("largest", 131072, "Pairs on one device; 0 leaves the row out.")
_LARGEST_ON = flags.DEFINE_string("largest_on", "v5e:1x1", "Topology of that device.")
_OUTPUT = flags.DEFINE_string("output", None, "File for the JSON, besides standard output.")


def measure(topology: str, loss: str, implementation: str, batch_size: int) -> dict[str, Any]:
    """One row: the compiled program's own figures."""
    mesh = make_mesh(devices=list(find_target(topology).devices))
    rows, whole = batch_sharding(mesh), replicated(mesh)
    width, dtype = _WIDTH.value, jnp.dtype(_DTYPE.value)
    scalars = {"softmax": 1, "sigmoid": 2}[loss]
    shardings = (rows, rows, *[whole] * scalars)
    inputs = [jax.ShapeDtypeStruct((batch_size, width), dtype, sharding=rows)] * 2
    inputs += [jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)] * scalars

    def value(*arguments: jax.Array) -> jax.Array:
        return LOSSES[loss](*arguments, implementation=implementation)

    begun = time.perf_counter()
    with jax.set_mesh(mesh):
        function = jax.value_and_grad(value, argnums=range(len(inputs)))
        compiled = jax.jit(function, out_shardings=(whole, shardings)).lower(*inputs).compile()
    seconds = time.perf_counter() - begun
    memory, cost = compiled.memory_analysis(), program_cost(compiled.as_text())
    block = 3 * 2 * (batch_size / mesh.size) * batch_size * width
    return {
        "topology": topology,
        "chips": mesh.size,
        "batch_size": batch_size,
        "loss": loss,
        "implementation": implementation,
        "temporaries_mib": round(memory.temp_size_in_bytes / MIB, 1),
        "arguments_and_results_mib": round(
            (memory.argument_size_in_bytes + memory.output_size_in_bytes) / MIB, 1
        ),
        "flops_of_a_block": round(cost.flops / block, 3),
        "collectives": cost.collective_counts,
        "collectives_mib": {k: round(v / MIB, 1) for k, v in cost.collective_bytes.items()},
        "compile_seconds": round(seconds, 1),
    }


def limited(row: dict[str, Any], temporaries_mib: float | None) -> dict[str, Any]:
    """The row with its limits, and whether it keeps them."""
    limits = {} if temporaries_mib is None else {"temporaries_mib": temporaries_mib}
    if row["implementation"] == "dense":
        limits["flops_of_a_block"] = FLOPS_LIMIT
    return {**row, "limits": limits, "kept": all(row[k] <= v for k, v in limits.items())}


def table() -> list[dict[str, Any]]:
    """All rows that the flags ask for."""
    found = []
    for topology, loss, implementation in itertools.product(
        _TOPOLOGIES.value, _LOSSES.value, _IMPLEMENTATIONS.value
    ):
        chips = len(find_target(topology).devices)
        if effective_implementation(implementation, chips)[0] != implementation:
            continue
        stated = (_BATCH_SIZE.value, _WIDTH.value) == (32768, 768)
        limit = LIMITS_MIB.get((topology, loss, implementation)) if stated else None
        row = measure(topology, loss, implementation, _BATCH_SIZE.value)
        found.append(limited(row, limit))
    if _LARGEST.value:
        for loss in _LOSSES.value:
            row = measure(_LARGEST_ON.value, loss, "chunked", _LARGEST.value)
            found.append(limited(row, LARGEST_LIMIT_MIB if _LARGEST.value == 131072 else None))
    return found


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {argv[1:]}")
    rows = table()
    result = {
        "width": _WIDTH.value,
        "dtype": _DTYPE.value,
        "rows": rows,
        "limits_kept": all(row["kept"] for row in rows),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
