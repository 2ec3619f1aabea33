"""Parser for the text of a compiled program (`Compiled.as_text()`).

It reads only what counting needs: computations, their instructions, shapes, and loop lengths. The
texts of the CPU, TPU and GPU compilers differ in names, not in grammar.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable

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
        begin = _attribute(name).search(self.attributes)
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


@functools.lru_cache
def _attribute(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|[, ]){re.escape(name)}=")


@dataclasses.dataclass
class Computation:
    """A named list of instructions."""

    name: str
    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: str = ""

    def shape(self, name: str) -> Shape:
        """Shape of the (first) array that an instruction returns."""
        return self.instructions[name].shapes[0]


@dataclasses.dataclass
class Module:
    """A compiled program."""

    computations: dict[str, Computation]
    entry: Computation


def parse(text: str) -> Module:
    """Parses the text that `jax.stages.Compiled.as_text` returns.

    Raises `ValueError` for a text without an entry computation.
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
    return Module(computations, entry)


State = dict[int, int]  # index -> known integer of a tuple

_ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "subtract": lambda a, b: a - b,
    "multiply": lambda a, b: a * b,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "minimum": min,
    "maximum": max,
}
_COMPARE: dict[str, Callable[[int, int], int]] = {
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
}
_SAME_VALUE = {"copy", "convert", "bitcast", "reshape", "copy-start", "copy-done"}


class Frame:
    """A computation with its known arguments, which evaluates scalar integers."""

    def __init__(
        self,
        module: Module,
        computation: Computation,
        arguments: tuple[int | State | None, ...] = (),
    ):
        self.module = module
        self.computation = computation
        self.arguments = arguments
        self._known: dict[str, int | None] = {}

    def call(self, name: str, *arguments: int | State | None) -> Frame:
        """The frame of a called computation."""
        return Frame(self.module, self.module.computations[name], arguments)

    def value(self, name: str) -> int | None:
        """The integer that an instruction returns; None for an array or an unknown value."""
        if name not in self._known:
            step = self.computation.instructions[name]
            shape = step.shapes[0] if len(step.shapes) == 1 else None
            is_integer = shape is not None and not shape.dims and shape.dtype[0] in "sup"
            self._known[name] = self._value(step) if is_integer else None
        return self._known[name]

    @property
    def result(self) -> int | None:
        """The integer that the computation returns."""
        return self.value(self.computation.root)

    def _value(self, step: Instruction) -> int | None:
        if step.opcode == "constant":
            return _literal(step.argument)
        if step.opcode == "parameter":
            number = int(step.argument)
            found = self.arguments[number] if number < len(self.arguments) else None
            return found if isinstance(found, int) else None
        if step.opcode == "get-tuple-element":
            return self.element(step.operands[0], step.dims("index")[0])
        if step.opcode in _SAME_VALUE:
            return self.value(step.operands[0])
        if step.opcode in ("fusion", "call"):
            return self._inside(step).result
        operations = _ARITHMETIC if step.opcode != "compare" else _COMPARE
        operation = operations.get(step.attribute("direction") or step.opcode)
        if operation is None:
            return None
        a, b = (self.value(operand) for operand in step.operands)
        return None if a is None or b is None else int(operation(a, b))

    def element(self, name: str, index: int) -> int | None:
        """The integer at an index of the tuple that an instruction returns."""
        step = self.computation.instructions[name]
        if step.opcode == "tuple":
            return self.value(step.operands[index]) if index < len(step.operands) else None
        if step.opcode == "parameter":
            number = int(step.argument)
            state = self.arguments[number] if number < len(self.arguments) else None
            return state.get(index) if isinstance(state, dict) else None
        if step.opcode in ("fusion", "call"):
            inside = self._inside(step)
            return inside.element(inside.computation.root, index)
        return None

    def _inside(self, step: Instruction) -> Frame:
        called = step.called("calls", "to_apply")[0]
        return self.call(called, *(self.value(operand) for operand in step.operands))

    def loop(self, step: Instruction) -> tuple[int | None, Frame]:
        """(iterations or None, body frame) of a `while`; the frame knows the constants of the
        state."""
        body = self.module.computations[step.called("body")[0]]
        places = range(len(step.shapes))
        state = {i: v for i in places if (v := self.element(step.operands[0], i)) is not None}
        kept = {index: value for index, value in state.items() if _is_kept(body, index)}
        noted = _TRIP_COUNT.search(step.attributes)
        trips = int(noted[1]) if noted else self._count(step, state, set(state) - set(kept))
        return trips, self.call(body.name, kept)

    def _count(self, step: Instruction, state: State, counters: set[int]) -> int | None:
        """Counts the iterations of a loop by running its counters."""
        condition, body = step.called("condition")[0], step.called("body")[0]
        for trips in range(MOST_TRIPS):
            goes_on = self.call(condition, state).result
            if not goes_on:
                return None if goes_on is None else trips
            frame = self.call(body, state)
            after = {i: frame.element(frame.computation.root, i) for i in counters & set(state)}
            state = {i: v for i, v in (state | after).items() if v is not None}
        return None


def _is_kept(body: Computation, index: int) -> bool:
    """Whether a loop's body passes on an element of its state unchanged."""
    root = body.instructions[body.root]
    if root.opcode != "tuple" or index >= len(root.operands):
        return False
    made = body.instructions[root.operands[index]]
    if made.opcode != "get-tuple-element" or made.dims("index") != (index,):
        return False
    return body.instructions[made.operands[0]].opcode == "parameter"


def _literal(text: str) -> int | None:
    """Value of a scalar constant (a whole number, true or false), or None."""
    if text in ("true", "false"):
        return int(text == "true")
    return int(text) if re.fullmatch(r"-?\d+", text) else None
