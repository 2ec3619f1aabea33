"""Parser for the text of a compiled program (`Compiled.as_text()`).

It reads only what counting needs: computations, their instructions, shapes, and loop lengths. The
texts of the CPU, TPU and GPU compilers differ in names, not in grammar.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Callable
from typing import Any

# Bits per element; types not listed take no memory, like tokens and opaque values.
_BITS = {"pred": 8, "token": 0, "opaque": 0} | {
    f"{letter}{bits}": bits for letter in "suf" for bits in (1, 2, 4, 8, 16, 32, 64)
}
_BITS |= {"bf16": 16, "c64": 64, "c128": 128}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_SHAPE = re.compile(r"([a-z]+[0-9]*(?:e[0-9]+m[0-9]+[a-z]*)?)\[([0-9,<=]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
MOST_TRIPS = 100_000  # a longer loop counts as one of unknown length


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's element type and sizes."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> int:
        """Bytes without padding."""
        bits = _BITS.get(self.dtype, 8 if self.dtype.startswith("f8") else 0)
        return self.elements * bits // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation."""

    name: str
    opcode: str
    result: str  # the text of its shape; see `shapes`
    operands: tuple[str, ...]  # names in the same computation
    argument: str  # text in the parentheses: a constant's value, a parameter's number
    attributes: str

    @functools.cached_property
    def shapes(self) -> tuple[Shape, ...]:
        """Shapes of the result: one array, or the leaves of a tuple."""
        return tuple(
            Shape(dtype, tuple(int(size.strip("<=")) for size in sizes.split(",") if size))
            for dtype, sizes in _SHAPE.findall(self.result)
        )

    def attribute(self, name: str) -> str:
        """The text after `name=`, up to the end of its braces or the next comma; "" if absent."""
        begin = re.search(rf"(?:^|[, ]){name}=", self.attributes)
        if begin is None:
            return ""
        text, depth = self.attributes[begin.end() :], 0
        for end, letter in enumerate(text):
            depth += letter in "{[" or -(letter in "}]")
            if depth == 0 and letter == ",":
                return text[:end]
        return text

    def dims(self, name: str) -> tuple[int, ...]:
        """Numbers of an attribute such as `dimensions={0,2}`."""
        return tuple(int(n) for n in re.findall(r"\d+", self.attribute(name)))

    def called(self, *names: str) -> tuple[str, ...]:
        """The computations called by the first of these attributes that is present."""
        for name in names:
            text = self.attribute(name)
            if text:
                return tuple(_NAME.findall(text))
        return ()


@dataclasses.dataclass
class Computation:
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    def shape(self, name: str) -> Shape:
        """Shape of the (first) array that an instruction returns."""
        return self.instructions[name].shapes[0]


def parse(text: str) -> Frame:
    """Parses the text that `jax.stages.Compiled.as_text` returns; returns its entry computation.

    Raises `ValueError` for a text without one.
    """
    computations: dict[str, Computation] = {}
    entry = current = None
    for line in text.splitlines():
        if line[:1].isspace():
            match = _INSTRUCTION.match(line)
            if match is None or current is None:
                continue
            is_root, name, result, opcode, rest = match.groups()
            argument, _, attributes = rest.partition(")")
            operands = tuple(_NAME.findall(argument))
            current.instructions[name] = Instruction(
                name, opcode, result, operands, argument, attributes
            )
            if is_root:
                current.root = name
        elif match := _HEADER.match(line):
            current = Computation(match[2])
            computations[current.name] = current
            entry = current if match[1] else entry
    if entry is None:
        raise ValueError("no entry computation in the text of the compiled program")
    return Frame(computations, entry)


Value = int | tuple[Any, ...] | None  # a scalar integer or a tuple; None: an array, or unknown

_OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "and": operator.and_,
    "or": operator.or_,
    "minimum": min,
    "maximum": max,
    # directions of "compare"
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
    "EQ": operator.eq,
    "NE": operator.ne,
}
_SAME_VALUE = {"copy", "convert", "bitcast", "reshape", "copy-start", "copy-done"}


class Frame:
    """A computation with its known arguments, which evaluates scalar integers."""

    def __init__(
        self,
        computations: dict[str, Computation],
        computation: Computation,
        arguments: tuple[Value, ...] = (),
    ):
        self.computations = computations
        self.computation = computation
        self.arguments = arguments
        self._known: dict[str, Value] = {}

    def call(self, name: str, *arguments: Value) -> Frame:
        """The frame of a called computation."""
        return Frame(self.computations, self.computations[name], arguments)

    @property
    def result(self) -> Value:
        """The value that the computation returns."""
        return self.value(self.computation.root)

    def value(self, name: str) -> Value:
        """The value that an instruction returns."""
        if name not in self._known:
            step = self.computation.instructions[name]
            shape = None if step.result.startswith("(") else step.shapes[0]
            is_known = shape is None or (not shape.dims and shape.dtype[0] in "sup")
            self._known[name] = self._value(step) if is_known else None
        return self._known[name]

    def _value(self, step: Instruction) -> Value:
        if step.opcode == "constant":
            return _literal(step.argument)
        if step.opcode == "parameter":
            number = int(step.argument)
            return self.arguments[number] if number < len(self.arguments) else None
        if step.opcode == "tuple":
            return tuple(self.value(operand) for operand in step.operands)
        if step.opcode == "get-tuple-element":
            whole = self.value(step.operands[0])
            return whole[step.dims("index")[0]] if isinstance(whole, tuple) else None
        if step.opcode in _SAME_VALUE:
            return self.value(step.operands[0])
        if step.opcode in ("fusion", "call"):
            called = step.called("calls", "to_apply")[0]
            return self.call(called, *(self.value(operand) for operand in step.operands)).result
        operation = _OPERATIONS.get(step.attribute("direction") or step.opcode)
        if operation is None:
            return None
        a, b = (self.value(operand) for operand in step.operands)
        return int(operation(a, b)) if isinstance(a, int) and isinstance(b, int) else None

    def loop(self, step: Instruction) -> tuple[int | None, Frame]:
        """(iterations or None, body frame) of a `while`; the frame knows the constants of the
        state."""
        (condition,), (body,) = step.called("condition"), step.called("body")
        state = self.value(step.operands[0])
        noted = _TRIP_COUNT.search(step.attributes)
        trips = int(noted[1]) if noted else self._count(condition, body, state)
        if isinstance(state, tuple):
            kept = _kept(self.computations[body])
            state = tuple(value if i in kept else None for i, value in enumerate(state))
        return trips, self.call(body, state)

    def _count(self, condition: str, body: str, state: Value) -> int | None:
        """Counts the iterations of a loop by running it."""
        for trips in range(MOST_TRIPS):
            goes_on = self.call(condition, state).result
            if not goes_on:
                return None if goes_on is None else trips
            state = self.call(body, state).result
        return None


def _kept(body: Computation) -> set[int]:
    """Indices of the state's elements that a loop's body passes on unchanged."""
    steps = body.instructions
    root = steps[body.root]
    made = [steps[name] for name in root.operands] if root.opcode == "tuple" else []
    return {
        index
        for index, step in enumerate(made)
        if step.opcode == "get-tuple-element"
        and step.dims("index") == (index,)
        and steps[step.operands[0]].opcode == "parameter"
    }


def _literal(text: str) -> int | None:
    """Value of a scalar constant (a whole number, true or false), or None."""
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if re.fullmatch(r"-?\d+", text) else None
