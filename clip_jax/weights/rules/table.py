"""Engine of all weight layouts: one table of rules, applied in both directions.

A rule maps a tensor of a file to a part of one of our parameters, and names its layout in the file.
Reading goes through the table leaf by leaf, so that little more than one leaf is in memory besides
those already placed.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import param_shapes
from clip_jax.weights.files.names import Tensors, listed
from clip_jax.weights.rules.positions import resize_grid, resize_line

logger = logging.getLogger(__name__)

Shape = tuple[int, ...]
Place = Callable[[str, np.ndarray], Any]  # (path, leaf in host memory) -> placed leaf
MAX_LETTERS = 210  # limit for the names in one error


class Kind(NamedTuple):
    """Conversion between the two layouts of one tensor."""

    read: Callable[[np.ndarray, Shape], np.ndarray]  # (theirs, our shape) -> ours
    write: Callable[[np.ndarray], np.ndarray]  # ours -> theirs


KINDS = {
    "same": Kind(lambda x, shape: x, lambda x: x),
    # (out, in) <-> (in, out)
    "matrix": Kind(lambda x, shape: x.T, lambda x: x.T),
    # (out, in, h, w) <-> (h, w, in, out)
    "convolution": Kind(
        lambda x, shape: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1)
    ),
    # (out, width) <-> (width, …); the trailing axes, heads or (3, heads), multiply to out
    "into_heads": Kind(lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(x.shape[0], -1).T),
    # (out,) <-> (…); the axes multiply to out
    "flat": Kind(lambda x, shape: x.reshape(shape), lambda x: x.reshape(-1)),
    # (width, in) <-> (…, width); the leading axes, heads or a patch's pixels, multiply to in
    "out_of_heads": Kind(
        lambda x, shape: x.T.reshape(shape), lambda x: x.reshape(-1, x.shape[-1]).T
    ),
    # (1, …) <-> (…), and (1, 1, …) <-> (…)
    "one_more_axis": Kind(lambda x, shape: x[0], lambda x: x[None]),
    "two_more_axes": Kind(lambda x, shape: x[0, 0], lambda x: x[None, None]),
    # (1,) <-> (); any shape with one number is read, as in "same"
    "scalar": Kind(lambda x, shape: x.reshape(()), lambda x: x.reshape(1)),
}


class Rule(NamedTuple):
    """One tensor: its name in the file, our path, its layout.

    `at` indexes our leaf if the tensor fills only a part of it (a layer of a scanned stack, the
    keys of a fused projection); `theirs_at` indexes their tensor likewise. `resize` is how a
    position table for another input size is interpolated: "grid" (the first `prefix` rows are
    kept) or "line".
    """

    theirs: str
    ours: str
    kind: str = "same"
    at: tuple[Any, ...] = ()
    theirs_at: tuple[Any, ...] = ()
    resize: str | None = None
    prefix: int = 0


class ArrayTensors:
    """`Tensors` backed by arrays in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray], where: Path | str = "the weights"):
        self.arrays, self.where = arrays, Path(where)
        self.shapes: Mapping[str, Shape] = {name: np.shape(x) for name, x in arrays.items()}

    def read(self, name: str) -> np.ndarray:
        """The array of that name."""
        return np.asarray(self.arrays[name])


def affine(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a LayerNorm: gain and offset."""
    return Rule(f"{theirs}.weight", f"{ours}/scale"), Rule(f"{theirs}.bias", f"{ours}/bias")


def batch_norm(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a batch normalisation: gain, offset and running statistics."""
    statistics = (("running_mean", "mean"), ("running_var", "var"))
    return *affine(theirs, ours), *(Rule(f"{theirs}.{a}", f"{ours}/{b}") for a, b in statistics)


def linear(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules of a Linear layer with a bias."""
    return (
        Rule(f"{theirs}.weight", f"{ours}/kernel", "matrix"),
        Rule(f"{theirs}.bias", f"{ours}/bias"),
    )


def attention_out(theirs: str, ours: str = "attention") -> tuple[Rule, ...]:
    """Rules of an attention's output projection."""
    kernel = Rule(f"{theirs}.weight", f"{ours}/out", "out_of_heads")
    return kernel, Rule(f"{theirs}.bias", f"{ours}/out_bias")


def attention(parts: Iterable[str], out: str, ours: str = "attention") -> Iterator[Rule]:
    """Rules of an attention whose query, key and value are Linear layers called `parts`."""
    for index, theirs in enumerate(parts):
        part = (slice(None), index)
        yield Rule(f"{theirs}.weight", f"{ours}/query_key_value", "into_heads", part)
        yield Rule(f"{theirs}.bias", f"{ours}/query_key_value_bias", "flat", (index,))
    yield from attention_out(out, ours)


def under(
    rules: Iterable[Rule], theirs: str, ours: str, at: tuple[Any, ...] = ()
) -> Iterator[Rule]:
    """The rules with both names prefixed; `at` comes before the rules' own index."""
    for rule in rules:
        yield rule._replace(theirs=theirs + rule.theirs, ours=ours + rule.ours, at=at + rule.at)


def blocks(
    rules: Iterable[Rule], theirs: str, ours: str, layers: int, scanned: bool
) -> Iterator[Rule]:
    """Repeats one block's `rules` for all blocks of a stack; `theirs` has a `{}` for the layer's
    number, `ours` is the path of the stack."""
    rules = tuple(rules)
    for n in range(layers):
        path = f"{ours}/blocks/" if scanned else f"{ours}/blocks_{n}/"
        yield from under(rules, theirs.format(n), path, (n,) if scanned else ())


def our_shapes(config: ClipConfig) -> dict[str, Shape]:
    """{path: shape} of every parameter and running statistic."""
    tree = flatten_dict(param_shapes(config), sep="/")
    return {path: leaf.shape for path, leaf in tree.items()}


def part_shape(shape: Shape, at: tuple[Any, ...]) -> Shape:
    """The shape of an array of `shape` indexed by `at`."""
    return np.broadcast_to(np.float32(0), shape)[at].shape  # an array of this shape without memory


def _raise_problems(where: Path | str, problems: Mapping[str, Iterable[str]]) -> None:
    """Raises `UserError` with one short line: the first names of every non-empty list."""
    lists = {what: list(names) for what, names in problems.items()}
    lists = {what: names for what, names in lists.items() if names}
    if lists:
        room = MAX_LETTERS // len(lists)
        parts = [f"{what}: {_within(names, room)}" for what, names in lists.items()]
        raise UserError(f"{where} does not fit the architecture; " + "; ".join(parts))


def _within(names: list[str], room: int) -> str:
    """The names that fit into `room` characters, at least one, and the number of the others."""
    shown = 1
    while shown < len(names) and len(", ".join(names[: shown + 1])) <= room:
        shown += 1
    return listed(names, shown)


def _misfit(rule: Rule, ours: Shape, theirs: Shape) -> str | None:
    """A message about a tensor's wrong shape, or None."""
    part = part_shape(ours, rule.at)
    # Some programs store the scale as a vector of one number; any one-number shape is unambiguous.
    if part == () and math.prod(theirs) == 1:
        return None
    wanted = KINDS[rule.kind].write(np.broadcast_to(np.float32(0), part)).shape
    found = part_shape(theirs, rule.theirs_at)
    if found == wanted:
        return None
    same_but_rows = len(found) == len(wanted) and found[-1:] == wanted[-1:]
    if rule.resize and same_but_rows and _resizable(rule, found):
        return None
    return f"{rule.theirs} {found} instead of {wanted}"


def _resizable(rule: Rule, found: Shape) -> bool:
    patches = found[-2] - rule.prefix
    return rule.resize == "line" or (patches > 0 and round(patches**0.5) ** 2 == patches)


def check_names(
    config: ClipConfig, table: list[Rule], tensors: Tensors, ignored: re.Pattern[str]
) -> dict[str, Shape]:
    """Checks that tensors and rules match one to one, with the right shapes; returns our shapes.

    Raises `UserError` listing names that are missing, unknown or of another shape.
    """
    shapes, known = our_shapes(config), {rule.theirs for rule in table}
    present = [rule for rule in table if rule.theirs in tensors.shapes]
    if not present:
        wanted = _within(list(dict.fromkeys(rule.theirs for rule in table)), 100)
        raise UserError(
            f"{tensors.where}: none of its {len(tensors.shapes)} tensors has a name of this "
            f"layout; looked for {wanted}; there is {_within(list(tensors.shapes), 100)}"
        )
    wrong = (_misfit(rule, shapes[rule.ours], tensors.shapes[rule.theirs]) for rule in present)
    _raise_problems(
        tensors.where,
        {
            "missing": dict.fromkeys(r.theirs for r in table if r.theirs not in tensors.shapes),
            "unknown": [n for n in tensors.shapes if n not in known and not ignored.search(n)],
            "of another shape": [problem for problem in wrong if problem],
        },
    )
    unfilled = shapes.keys() - {rule.ours for rule in table}
    assert not unfilled, f"no rule for {sorted(unfilled)}"
    return shapes


def read_params(
    config: ClipConfig,
    table: list[Rule],
    tensors: Tensors,
    ignored: re.Pattern[str],
    dtype: str = "float32",
    place: Place = lambda path, leaf: leaf,
    progress: Callable[[int], None] = lambda size: None,
) -> dict[str, Any]:
    """The file's tensors -> our `params` in `dtype`; each complete leaf goes through `place`.

    `progress` gets each tensor's number of scalars. Raises `UserError` listing names that are
    missing, unknown or of another shape, or naming a tensor with NaN or infinite values.
    """
    shapes = check_names(config, table, tensors, ignored)
    by_leaf: dict[str, list[Rule]] = {}
    order = {name: index for index, name in enumerate(tensors.shapes)}
    for rule in sorted(table, key=lambda rule: order[rule.theirs]):
        by_leaf.setdefault(rule.ours, []).append(rule)
    uses = Counter(rule.theirs for rule in table)
    held: dict[str, np.ndarray] = {}  # until its last rule: one stack of layers feeds many leaves
    flat = {}
    for path, rules in by_leaf.items():
        leaf = np.empty(shapes[path], leaf_dtype(path, dtype))
        for rule in rules:
            if rule.theirs not in held:
                held[rule.theirs] = tensors.read(rule.theirs)
                _refuse_whole_numbers(held[rule.theirs], rule.theirs, tensors.where)
                progress(held[rule.theirs].size)
            part = leaf[rule.at].shape
            value = _resized(rule, held[rule.theirs][rule.theirs_at], part)
            if part == ():
                value = value.reshape(())
            with np.errstate(over="ignore"):  # reported below, with the tensor's name
                leaf[rule.at] = KINDS[rule.kind].read(value, part)
            _refuse_non_finite(leaf[rule.at], rule.theirs, tensors.where)
            uses[rule.theirs] -= 1
            if not uses[rule.theirs]:
                del held[rule.theirs], value
        flat[path] = place(path, leaf)
    return unflatten_dict(flat, sep="/")


def leaf_dtype(path: str, dtype: str) -> np.dtype:
    """float32 or bfloat16. The scale stays float32, because rounding a logarithm changes the
    temperature visibly."""
    keep = path.startswith("logit_") or dtype == "float32"
    return np.dtype(np.float32 if keep else ml_dtypes.bfloat16)


def _refuse_whole_numbers(tensor: np.ndarray, name: str, where: Path) -> None:
    if tensor.dtype.kind in "iub":
        raise UserError(f"{where}: {name} has dtype {tensor.dtype}; weights are floating-point")


def _refuse_non_finite(tensor: np.ndarray, name: str, where: Path) -> None:
    if tensor.dtype.itemsize == 2 and tensor.dtype.kind in "fV":  # exponent bits all set
        mask = 0x7C00 if tensor.dtype == np.float16 else 0x7F80
        bad = bool(((tensor.view(np.uint16) & mask) == mask).any())
    else:
        bad = tensor.size > 0 and not np.isfinite([tensor.min(), tensor.max()]).all()
    if bad:
        raise UserError(f"{where}: {name} has values that are NaN or infinite")


def _resized(rule: Rule, tensor: np.ndarray, part: Shape) -> np.ndarray:
    """The position table, interpolated to our number of rows if they differ."""
    if rule.resize is None or tensor.shape[-2] == part[-2]:
        return tensor
    rows = tensor.astype(np.float32).reshape(tensor.shape[-2:])
    if rule.resize == "line":
        resized = resize_line(rows, part[-2])
    else:
        resized = resize_grid(rows, part[-2], rule.prefix)
    logger.warning(
        "%s: position table of %d rows interpolated to %d", rule.theirs, len(rows), part[-2]
    )
    return resized.reshape(*tensor.shape[:-2], *resized.shape)


def write_tensors(
    config: ClipConfig, table: list[Rule], params: Any
) -> Iterator[tuple[str, np.ndarray]]:
    """Our `params` in the layout of `config` -> (file's name, contiguous array), one at a time.

    The inverse of `read_params`, bit for bit. Raises `UserError` listing the paths if the
    parameters do not match `config`. Rules with `theirs_at` cannot be written.
    """
    flat = flatten_dict(params, sep="/")
    shapes = our_shapes(config)
    _raise_problems(
        "the model",
        {
            "missing": sorted(shapes.keys() - flat.keys()),
            "unknown": sorted(flat.keys() - shapes.keys()),
            "of another shape": [
                f"{path} {np.shape(flat[path])} instead of {shape}"
                for path, shape in shapes.items()
                if path in flat and np.shape(flat[path]) != shape
            ],
        },
    )
    cached: tuple[str, np.ndarray] | None = None
    for rule in table:
        if cached is None or cached[0] != rule.ours:
            cached = (rule.ours, np.asarray(flat[rule.ours]))
        value = KINDS[rule.kind].write(cached[1][rule.at])
        # np.ascontiguousarray alone would turn a scalar into a vector.
        yield rule.theirs, np.ascontiguousarray(value).reshape(value.shape)
