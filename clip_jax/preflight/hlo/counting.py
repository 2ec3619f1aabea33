"""Arithmetic and communication of one run of a compiled program, per device.

Loop bodies count as often as they run; the compiler's own analysis counts them once.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable, Iterable

from clip_jax.preflight.hlo.program_text import Frame, Instruction, Shape, parse

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_KINDS = {name: name for name in COLLECTIVES} | {"ragged-all-to-all": "all-to-all"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices, repeated `trips` times by its loops."""

    kind: str  # of COLLECTIVES
    operands: tuple[Shape, ...]  # a device's input
    results: tuple[Shape, ...]  # a device's output
    dims: tuple[int, ...]  # "all-gather": the axis that grows
    group: int  # number of participating devices; 0: unknown
    op_name: str  # its origin in the model
    chain: str = ""  # TPU: shared by the parts of one exchange over several fusions
    begins: bool = False  # whether this is the exchange's first part
    is_asynchronous: bool = False  # whether other work goes on meanwhile
    trips: int = 1

    @property
    def bytes(self) -> int:
        """Bytes per device and repetition: the larger of operand and result, since each kind has
        its whole on one side."""
        return max(sum(s.bytes for s in self.operands), sum(s.bytes for s in self.results))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one run, per device."""

    flops: float = 0.0  # matrix products and convolutions; 2 per multiply-add
    collectives: tuple[Collective, ...] = ()
    unknown_loops: tuple[str, ...] = ()  # loops of unknown length, counted once

    def times(self, trips: int) -> Cost:
        """The cost of a loop with `trips` iterations."""
        repeated = (dataclasses.replace(c, trips=c.trips * trips) for c in self.collectives)
        return Cost(self.flops * trips, tuple(repeated), self.unknown_loops)

    @property
    def collective_counts(self) -> dict[str, int]:
        """Number of exchanges by kind, without kinds that do not occur."""
        return self._sum(lambda collective: collective.trips)

    @property
    def collective_bytes(self) -> dict[str, int]:
        """Bytes per device by kind; see `Collective.bytes`."""
        return self._sum(lambda collective: collective.trips * collective.bytes)

    def _sum(self, amount: Callable[[Collective], int]) -> dict[str, int]:
        totals: dict[str, int] = {}
        for collective in self.collectives:
            totals[collective.kind] = totals.get(collective.kind, 0) + amount(collective)
        return totals


def program_cost(text: str) -> Cost:
    """The cost of a compiled program, from its text.

    Matrix products and convolutions are counted everywhere: in loops times their length, in the
    dearest branch of a conditional, in fusions, calls and asynchronous wrappers. Custom kernels are
    not counted, except for GPU libraries' matrix products and convolutions.
    """
    cost = _cost(parse(text))
    return dataclasses.replace(cost, collectives=_once(cost.collectives))


def _once(collectives: tuple[Collective, ...]) -> tuple[Collective, ...]:
    """Keeps only the first part of an exchange that is spread over several fusions: the rest may
    be in a loop that hides it."""
    begun = {c.chain for c in collectives if c.begins}
    kept: list[Collective] = []
    seen: set[str] = set()
    for collective in collectives:
        chain = collective.chain
        if not chain or collective.begins or (chain not in begun and chain not in seen):
            kept.append(collective)
        seen.add(chain)
    return tuple(kept)


def _cost(frame: Frame) -> Cost:
    """The cost of a computation that runs once: the program, or a loop's body."""
    return _join(_step_cost(frame, step) for step in frame.computation.instructions.values())


def _join(costs: Iterable[Cost]) -> Cost:
    costs = list(costs)
    collectives = tuple(c for cost in costs for c in cost.collectives)
    unknown = tuple(name for cost in costs for name in cost.unknown_loops)
    return Cost(sum(cost.flops for cost in costs), collectives, unknown)


def own_flops(frame: Frame, step: Instruction) -> float:
    """Operations of one instruction, or of the computation that a fusion calls."""
    return _step_cost(frame, step).flops


def _step_cost(frame: Frame, step: Instruction) -> Cost:
    opcode = step.opcode.removesuffix("-start")
    if opcode.endswith(("-done", "-update")):
        return Cost()
    if opcode == "dot":
        return Cost(_dot_flops(frame, step))
    if opcode == "convolution":
        return Cost(_convolution_flops(frame, step))
    if opcode in _KINDS:
        return Cost(collectives=(_collective(frame, step, _KINDS[opcode]),))
    if opcode == "while":
        trips, body = frame.loop(step)
        cost = _cost(body).times(1 if trips is None else trips)
        unknown = (step.name,) if trips is None else ()
        return dataclasses.replace(cost, unknown_loops=cost.unknown_loops + unknown)
    if opcode == "conditional":
        names = step.called("branch_computations") or (
            *step.called("true_computation"),
            *step.called("false_computation"),
        )
        branches = [_cost(frame.call(name)) for name in names]
        return max(branches, key=lambda cost: cost.flops)
    if opcode in ("fusion", "call", "async"):
        names = step.called("calls", "to_apply")
        cost = _join(_cost(frame.call(name)) for name in names)
        if opcode != "async":
            return cost
        hidden = (dataclasses.replace(c, is_asynchronous=True) for c in cost.collectives)
        return dataclasses.replace(cost, collectives=tuple(hidden))
    if opcode == "custom-call":
        return Cost(_library_flops(frame, step))
    return Cost()


def _dot_flops(frame: Frame, step: Instruction) -> float:
    left = frame.computation.shape(step.operands[0])
    contracted = math.prod(left.dims[axis] for axis in step.dims("lhs_contracting_dims"))
    return 2.0 * step.shapes[0].elements * contracted


def _convolution_flops(frame: Frame, step: Instruction) -> float:
    left, right = (frame.computation.shape(name) for name in step.operands[:2])
    return _window_flops(step, left, right, step.shapes[0])


def _window_flops(step: Instruction, left: Shape, right: Shape, out: Shape) -> float:
    """Two operations per pair of output and kernel positions that meet inside the input.

    XLA's TPU compiler writes batched matrix products as convolutions with spatial batch axes, most
    positions of which fall on padding and cost nothing (XLA's HloCostAnalysis counts alike).
    """
    labels = re.split("_|->", step.attribute("dim_labels"))
    in_axes, _, out_axes = (
        _by_label(shape, text) for shape, text in zip((left, right, out), labels, strict=True)
    )
    axes = range(len(labels[0]) - 2)
    window = dict(item.split("=") for item in step.attribute("window").strip("{}").split())

    def per_axis(key: str, default: str = "1") -> list[int]:
        texts = window[key].split("x") if key in window else [default for _ in axes]
        return [int(text.split("_")[0]) for text in texts]

    dilations = per_axis("lhs_dilate"), per_axis("rhs_dilate")
    numbers = zip(
        per_axis("size"), per_axis("pad", "0"), per_axis("stride"), *dilations, strict=True
    )
    pairs = 1
    for axis, settings in zip("0123", numbers, strict=False):
        pairs *= _meetings(in_axes[axis], out_axes[axis], *settings)
    groups = int(step.attribute("feature_group_count") or 1)
    batch_groups = int(step.attribute("batch_group_count") or 1)
    channels = in_axes["f"] // groups * out_axes["f"] * (in_axes["b"] // batch_groups)
    return 2.0 * channels * pairs


def _by_label(shape: Shape, labels: str) -> dict[str, int]:
    return dict(zip(labels, shape.dims, strict=True))


@functools.lru_cache(maxsize=4096)
def _meetings(
    inputs: int, outputs: int, size: int, pad: int, stride: int, base_dilation: int,
    window_dilation: int,
) -> int:  # fmt: skip
    """Number of pairs (output o, kernel k) of one axis for which o·stride − pad + k·window_dilation
    hits an input; inputs are `base_dilation` apart."""
    common = math.gcd(stride, base_dilation)
    period = base_dilation // common
    inverse = pow(stride // common, -1, period)
    total = 0
    for k in range(size):
        shift = pad - k * window_dilation
        if shift % common:
            continue
        low = max(0, -(-shift // stride))
        high = min(outputs - 1, ((inputs - 1) * base_dilation + shift) // stride)
        first = low + (shift // common * inverse - low) % period
        total += max(0, (high - first) // period + 1)
    return total


def _library_flops(frame: Frame, step: Instruction) -> float:
    """Operations of a GPU library's matrix product or convolution; 0 for other custom calls."""
    target = step.attribute("custom_call_target").strip('"')
    if not target.startswith(("__cublas$", "__cudnn$conv")):
        return 0.0
    left, right = (frame.computation.shape(name) for name in step.operands[:2])
    out = step.shapes[0]
    if target.startswith("__cublas$"):
        begin = step.attributes.index("backend_config=") + len("backend_config=")
        config, _ = json.JSONDecoder().raw_decode(step.attributes, begin)
        axes = config["gemm_backend_config"]["dot_dimension_numbers"]["lhs_contracting_dimensions"]
        return 2.0 * out.elements * math.prod(left.dims[int(axis)] for axis in axes)
    # The window always belongs to the forward convolution.
    if target == "__cudnn$convBackwardInput":
        left, right, out = out, right, left
    elif target == "__cudnn$convBackwardFilter":
        left, right, out = left, out, right
    return _window_flops(step, left, right, out)


def _collective(frame: Frame, step: Instruction, kind: str) -> Collective:
    operands = tuple(
        shape for name in step.operands for shape in frame.computation.instructions[name].shapes
    )
    results = step.shapes
    if step.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        # The start op also returns its operands, and on a TPU two counters.
        results = results[len(operands) : 2 * len(operands)]
    if kind == "all-reduce" and frame.computation.name.startswith("all-reduce-scatter"):
        # The TPU compiler's reduce-scatter is a fusion of an all-reduce and the kept slice.
        kind = "reduce-scatter"
        root = frame.computation.instructions[frame.computation.root]
        results = root.shapes
    named = re.search(r'op_name="([^"]*)"', step.attributes)
    chain = re.search(r'chain_id="(\d+)"', step.attributes)
    others = frame.computation.instructions.values()
    return Collective(
        kind,
        operands,
        results,
        step.dims("dimensions"),
        _group_size(step.attributes),
        named[1] if named else "",
        f"{step.attribute('channel_id')}/{chain[1]}" if chain else "",
        any('custom_call_target="AsyncCollectiveStart"' in other.attributes for other in others),
        step.opcode.endswith("-start") or bool(chain),
    )


_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\}")


def _group_size(attributes: str) -> int:
    """Devices per group, from `{{0,1},{2,3}}`, `[4,2]<=[8]` or `mesh['a'=4,'b'=2] {'a'}`."""
    if mesh := _MESH_GROUPS.search(attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        # Each is an axis or a part of one: 'a' or 'a':(2)4.
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in axes)
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", attributes):
        return int(iota[2])
    listed = re.search(r"replica_groups=\{(.*?)\}\}", attributes)
    groups = listed[1].split("}") if listed else []
    return max((group.strip(",{").count(",") + 1 for group in groups), default=0)
