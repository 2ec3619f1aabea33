"""Estimated time of one run of a TPU program, per device, by the compiler's own figures.

Every fusion of an optimised program carries `estimated_cycles`. They are summed here, in loops
times their length, and divided by the clock; cores that form one device share the work already.
They leave out what only a run shows: waits for memory that others use, exchanges that arrive late,
the host. For element-wise work they are above what the memory's rate alone would take (an addition
of two arrays on a v5e: 765 µs against 246), for large products 14 % above the peak's. jax's own
`optimal_seconds` is something else: the larger of arithmetic at peak and bytes at nine tenths of
the memory's rate, loop bodies once.

Hand-written kernels carry no cycles; they are counted by what they state of themselves, products at
padded shapes, exponentials and bytes. For our attention that is 17 % (forward) and 5 % (backward)
below the instructions that the compiler schedules (v5e, 257 tokens, before biases joined it).
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from clip_jax.preflight.hlo.counting import Collective, own_flops
from clip_jax.preflight.hlo.program_text import Frame, Instruction, parse


class Chip(NamedTuple):
    """Rates of a device, from the vendor's data sheets; the clock from peak and matrix units."""

    clock: float  # Hz
    memory: float  # bytes/s
    links: float  # bytes/s over all links to other chips
    exponentials: float  # per cycle: a register of each core


CHIPS = {
    "TPU v4": Chip(1.05e9, 1200e9, 300e9, 2048),
    "TPU v5 lite": Chip(1.5e9, 819e9, 200e9, 1024),
    "TPU v5": Chip(1.75e9, 2765e9, 600e9, 2048),
    "TPU v6 lite": Chip(1.75e9, 1640e9, 448e9, 1024),
}

# The first pattern that an operation's line of the model contains decides; see `part_of`.
_PARTS = (
    ("patch embedding", r"/(patch|embed|stem)"),
    ("norms", r"_norm\b|/norm|/ln"),
    ("attention core", r"pallas_call|/vmap\("),
    ("attention projections", r"/attention"),
    ("MLP", r"/mlp"),
    ("ResNet stages", r"/stage\d"),
    ("loss", r"loss|logit|contrast"),
    ("loops", r"dynamic_(update_)?(index|slice)|while/body$"),
    ("towers, other", r"encode_(image|text)"),
)
_COPIES = ("copy", "copy-start", "copy-done", "transpose", "bitcast-convert")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NAMED = re.compile(r'op_name="([^"]*)"')
_STATED = re.compile(r'"cost_estimate":(\{[^}]*\})')


@dataclasses.dataclass(frozen=True)
class Operation:
    """One fusion, kernel or copy of the program, with all its repetitions."""

    op_name: str  # its line of the model
    part: str
    seconds: float
    flops: float
    bytes: float
    count: int
    is_kernel: bool = False

    def times(self, trips: int) -> Operation:
        """The operation in a loop with `trips` iterations."""
        return dataclasses.replace(
            self,
            seconds=self.seconds * trips,
            flops=self.flops * trips,
            bytes=self.bytes * trips,
            count=self.count * trips,
        )

    def bound(self, chip: Chip, peak: float) -> str:
        """Names what would take longer at the chip's rates, "arithmetic" or "memory"."""
        return "arithmetic" if self.flops / peak > self.bytes / chip.memory else "memory"


@dataclasses.dataclass(frozen=True)
class Timing:
    """Estimated times of one run; the parts sum to `seconds`."""

    operations: tuple[Operation, ...]  # the dearest first
    exchanges: float  # seconds of all exchanges at the links' rate
    exposed: float  # of those that no computation hides

    @property
    def seconds(self) -> float:
        """Seconds of everything that is not hidden."""
        return sum(operation.seconds for operation in self.operations) + self.exposed

    @property
    def parts(self) -> dict[str, float]:
        """Seconds by part of the model, the largest first."""
        totals: dict[str, float] = {}
        for operation in self.operations:
            totals[operation.part] = totals.get(operation.part, 0.0) + operation.seconds
        if self.exposed:
            totals["exchanges"] = self.exposed
        return dict(sorted(totals.items(), key=lambda item: -item[1]))


def program_timing(
    text: str, device_kind: str, peak: float | None, collectives: tuple[Collective, ...]
) -> Timing | None:
    """Estimates a compiled program, from its text; None for devices whose compiler tells nothing.

    `peak` is in operations per second, `collectives` are `program_cost`'s.
    """
    chip = CHIPS.get(device_kind)
    if chip is None or peak is None:
        return None
    operations = sorted(_operations(parse(text), 1, chip, peak), key=lambda o: -o.seconds)
    # A reduction goes there and back.
    seconds = [
        (c, c.trips * c.bytes * (2 if c.kind == "all-reduce" else 1) / chip.links)
        for c in collectives
    ]
    exposed = sum(taken for c, taken in seconds if not c.is_asynchronous)
    return Timing(tuple(operations), sum(taken for _, taken in seconds), exposed)


def _operations(frame: Frame, trips: int, chip: Chip, peak: float) -> Iterator[Operation]:
    """Yields what a computation runs, `trips` times."""
    for step in frame.computation.instructions.values():
        if step.opcode == "while":
            count, body = frame.loop(step)
            yield from _operations(body, trips * (count or 1), chip, peak)
        elif step.opcode == "conditional":
            names = step.called("branch_computations") or (
                *step.called("true_computation"),
                *step.called("false_computation"),
            )
            branches = [list(_operations(frame.call(n), trips, chip, peak)) for n in names]
            yield from max(branches, key=lambda branch: sum(o.seconds for o in branch))
        elif step.opcode in ("call", "async-start"):
            for name in step.called("to_apply", "calls"):
                yield from _operations(frame.call(name), trips, chip, peak)
        else:
            operation = _operation(frame, step, chip, peak)
            if operation is not None:
                yield operation.times(trips)


def _operation(frame: Frame, step: Instruction, chip: Chip, peak: float) -> Operation | None:
    """One run of an instruction; None if it takes no time of its own."""
    cycles = _CYCLES.search(step.attributes)
    is_kernel = cycles is None and "tpu_custom_call" in step.attributes
    if cycles is None and not is_kernel:
        return None
    steps = frame.computation.instructions
    arrays = [*step.shapes, *(s for name in step.operands for s in steps[name].shapes)]
    flops, moved = own_flops(frame, step), float(sum(shape.bytes for shape in arrays))
    if cycles is not None:
        seconds = int(cycles[1]) / chip.clock
    else:
        stated = _STATED.search(step.attributes)
        # A kernel that states nothing moves its operands at least.
        work = {k: float(v) for k, v in json.loads(stated[1]).items()} if stated else {}
        flops, moved = work.get("flops", 0.0), work.get("bytes_accessed", moved)
        exponentials = work.get("transcendentals", 0.0) / chip.exponentials / chip.clock
        seconds = max(flops / peak + exponentials, moved / chip.memory)
    named = _NAMED.search(step.attributes)
    op_name = named[1] if named else ""
    part = part_of(op_name, step.opcode)
    return Operation(op_name, part, seconds, flops, moved, 1, is_kernel)


def part_of(op_name: str, opcode: str = "fusion") -> str:
    """The part of the model to which a line of it belongs.

    A fusion bears the name of one of its operations, so that a norm that is computed with a product
    counts as the product's.
    """
    if opcode in _COPIES:
        return "copies"
    found = (part for part, pattern in _PARTS if re.search(pattern, op_name))
    return next(found, "optimizer and the rest")
