"""Checks of arguments and flags, with one-line errors that say what would be accepted."""

import dataclasses
import functools
import math
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UserError

_SHOWN_LETTERS = 60


@dataclasses.dataclass(frozen=True)
class Range:
    """Accepted numbers of a dataclass's field, as in `share: Annotated[float, Range(0, 1)]`.

    Both ends belong to it, `low` only if it is not `above`; infinity does not. Numbers of a tuple
    must also ascend.
    """

    low: float = 0
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: Any) -> bool:
        numbers = list(value) if isinstance(value, tuple | list) else [value]
        return numbers == sorted(numbers) and all(
            math.isfinite(x) and self.low <= x <= self.high and not (self.above and x == self.low)
            for x in numbers
        )

    def __str__(self) -> str:
        if self.high < math.inf and not self.above:
            return f"{self.low:g} to {self.high:g}"
        low = f"greater than {self.low:g}" if self.above else f"at least {self.low:g}"
        return f"{low}, and " + ("finite" if self.high == math.inf else f"at most {self.high:g}")


POSITIVE = Range(above=True)


class Checked:
    """Base of a dataclass of options whose annotations give ranges.

    Construction raises `UserError` for a number outside, as "field=value: must be …".
    """

    def __post_init__(self) -> None:
        cls: Any = type(self)
        for name, (accepted, is_whole) in _ranges(cls).items():
            value = getattr(self, name)
            if value is None:
                continue
            if is_whole and not isinstance(value, int):
                raise UserError(f"{name}={value}: must be a whole number, {accepted}")
            if value not in accepted:
                kind = "(low, high), each " if isinstance(value, tuple) else ""
                raise UserError(f"{name}={value}: must be {kind}{accepted}")


@functools.cache
def _ranges(cls: type) -> dict[str, tuple[Range, bool]]:
    """Maps the fields that have a range to it, and to whether they hold whole numbers."""
    found = {}
    for name, kind in typing.get_type_hints(cls, include_extras=True).items():
        for accepted in getattr(kind, "__metadata__", ()):
            plain = kind.__origin__
            found[name] = accepted, int in (plain, *typing.get_args(plain))
    return found


def shown(value: Any) -> str:
    """Returns the value's repr on one line, cut to a readable length."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # a foreign object's own code
        text = f"<{type(value).__name__}>"
    return text if len(text) <= _SHOWN_LETTERS else f"{text[:_SHOWN_LETTERS]}…"


def text_list(values: Any, name: str, example: str, *, allow_blank: bool = True) -> list[str]:
    """Returns the strings of any ordered collection: list, tuple, generator, array, Series, ….

    Args:
      values: value of the argument `name`.
      example: example of a string, for the error message.
      allow_blank: whether a string may be empty or white space.

    Raises:
      UserError: a single string (its letters would become the list), anything without an order
        (set, dict), or an item that is not Unicode text.
    """
    wanted = f"give a list of strings, such as [{example!r}]"
    if isinstance(values, np.ndarray) and values.ndim == 0:
        values = values.item()
    if isinstance(values, str | bytes | bytearray):
        own = f"[{shown(str(values))}]" if isinstance(values, str) else f"[{example!r}]"
        raise UserError(f"{name}={shown(values)}: is one string; give a list, such as {own}")
    if isinstance(values, os.PathLike) or hasattr(values, "read"):
        raise UserError(f"{name}={shown(values)}: is a file; {wanted}, or read its lines first")
    if isinstance(values, set | frozenset | Mapping):
        kind = "dict" if isinstance(values, Mapping) else "set, whose order is random"
        raise UserError(f"{name}={shown(values)}: is a {kind}; {wanted}")
    if not isinstance(values, Iterable):
        raise UserError(f"{name}={shown(values)}: {wanted}")
    dimensions = getattr(values, "ndim", 1)
    if dimensions != 1:  # iterating over a table gives column names
        raise UserError(f"{name}: has {dimensions} dimensions; {wanted}, or one column")
    items = list(values)
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise UserError(f"{name}[{i}]={shown(item)}: is {_kind(item)}; {wanted}")
        if not allow_blank and not item.strip():
            raise UserError(f"{name}[{i}]={shown(str(item))}: is blank; {wanted}")
        if not item.isascii():
            try:
                item.encode()
            except UnicodeEncodeError as error:
                raise UserError(
                    f"{name}[{i}]={shown(str(item))}: is not Unicode text (character"
                    f" {error.start} is half a surrogate pair)"
                ) from None
    return [str(item) for item in items]  # converts numpy strings too


def _kind(value: Any) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def whole_number(value: Any, name: str, least: int = 1, greatest: int | None = None) -> int:
    """Returns the number as an int.

    Raises `UserError` if it is out of range or not an integer, which True and 1.0 are not either.
    """
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if is_whole and least <= value and (greatest is None or value <= greatest):
        return int(value)
    upper = "or more" if greatest is None else f"to {greatest}"
    joint = ": " if "=" in name else "="  # "ks=(1, 0), number 2: 0"
    raise UserError(f"{name}{joint}{shown(value)}: must be a whole number, {least} {upper}")


def yes_or_no(value: Any, name: str) -> bool:
    """Returns the bool. Raises `UserError` for values that are merely truthy, such as "False"."""
    if isinstance(value, bool | np.bool_) or (isinstance(value, int) and value in (0, 1)):
        return bool(value)
    raise UserError(f"{name}={shown(value)}: must be True or False")


def with_home(path: Any, name: str) -> str:
    """Returns a path or URL as text, with "~" replaced by the user's home folder.

    Raises `UserError` if `path` is no path, is empty, or begins with "~" and an unknown user.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise UserError(f"{name}={shown(path)}: must be a path, as a string or a Path") from None
    text = os.fsdecode(text)
    if not text.strip() or "\0" in text:
        raise UserError(f"{name}={text!r}: is not a path")
    expanded = os.path.expanduser(text)
    if expanded.startswith("~"):
        user = expanded.split("/")[0]
        raise UserError(
            f"{name}={text}: {user} is the home of no user here; write ./{user} for a folder"
            " of that name"
        )
    return expanded


def config_with_home(argv: Sequence[str]) -> list[str]:
    """Returns a program's arguments with "~" replaced in --config=~/FILE and --config "~/FILE".

    Shells replace it in neither.
    """
    replaced: list[str] = []
    for argument in argv:
        flag, _, value = argument.partition("=")
        if flag in ("--config", "-config") and value.startswith("~"):
            argument = f"{flag}={with_home(value, '--config')}"
        elif replaced and replaced[-1] in ("--config", "-config") and argument.startswith("~"):
            argument = with_home(argument, "--config")
        replaced.append(argument)
    return replaced


def local_path(path: Any, name: str) -> Path:
    """Returns a local path, with "~" replaced by the user's home folder.

    Raises `UserError` as `with_home` does, and for a URL other than file://.
    """
    text = with_home(path, name)
    if text.startswith("file://"):
        text = with_home(text.removeprefix("file://"), name)
    if "://" in text:
        raise UserError(f"{name}={text}: is a URL; give a path on this machine")
    return Path(text)
