"""Conversion of plain values, such as a parsed file's, to frozen dataclasses, with checks."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from clip_jax.errors import UserError

Config = TypeVar("Config")


def is_optional(kind: Any) -> bool:
    """Returns whether an annotation allows None."""
    return type(None) in typing.get_args(kind)


def _alternatives(kind: Any) -> list[Any]:
    """Returns the types of a union, without None; [kind] for another type."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return [each for each in typing.get_args(kind) if each is not type(None)]
    return [kind]


def plain_types(kind: Any) -> tuple[type, ...]:
    """Returns an annotation's concrete types: (float,) for `float | None`, (str,) for literals."""
    origins = [(typing.get_origin(each) or each) for each in _alternatives(kind)]
    return tuple(str if origin is Literal else origin for origin in origins)


def build(cls: type[Config], values: dict[str, Any], where: str) -> Config:
    """Builds the dataclass from nested values, checked against its annotations.

    Raises `UserError` that names the key below `where`, its value and what would be accepted: an
    unknown key (with the nearest known one), a wrong type, a value outside its choices or range. A
    class with its own `from_values` is built by that.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}={values!r}: must be a group of keys, such as {{'key': value}}")
    make: Callable[..., Config] | None = getattr(cls, "from_values", None)
    if make is not None:
        return make(values, where)
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in known]))
    built = {key: coerce(value, hints[key], f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**built)
    except UserError as error:  # "field=value: …"
        raise UserError(f"{where}.{error}") from error


def coerce(value: Any, kind: Any, where: str) -> Any:
    """Converts a value to the annotated type: whole floats to ints, lists to tuples, dicts to
    dataclasses.

    Raises `UserError` if that is impossible.
    """
    if dataclasses.is_dataclass(kind):
        return build(kind, value, where)  # type: ignore[arg-type]
    if value is None:
        if is_optional(kind):
            return None
        raise UserError(f"{where}=None: needs a value of type {_spell(kind)}")
    for wanted in _alternatives(kind):
        arguments = typing.get_args(wanted)
        plain = typing.get_origin(wanted) or wanted
        if plain is Literal:
            if value in arguments:
                return value
            choices = ", ".join(map(repr, arguments))
            raise UserError(f"{where}={value!r}: choose one of {choices}")
        if plain is bool or isinstance(value, bool):
            if plain is bool and isinstance(value, bool):
                return value
        elif plain is float and isinstance(value, int | float):
            return float(value)
        elif plain is int and isinstance(value, int | float):
            if math.isfinite(value) and value == int(value):
                return int(value)
        elif plain is tuple and isinstance(value, list | tuple):
            return _coerce_items(tuple(value), arguments, where)
        elif isinstance(value, plain):
            return value
    raise UserError(f"{where}={value!r}: must be {_spell(kind)}")


def _coerce_items(values: tuple, kinds: tuple[Any, ...], where: str) -> tuple:
    """Converts the items of a tuple to `kinds`, which are (kind, …) or one kind for each item."""
    if kinds[-1:] == (...,):
        kinds = kinds[:1] * len(values)
    if len(kinds) != len(values):
        raise UserError(f"{where}={values}: must have {len(kinds)} items")
    pairs = enumerate(zip(values, kinds, strict=True))
    return tuple(coerce(value, kind, f"{where}[{i}]") for i, (value, kind) in pairs)


def _spell(kind: Any) -> str:
    names = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "True or False"}
    spelt = [names.get(t.__name__, t.__name__) for t in plain_types(kind)]
    return " or ".join(spelt) + (" or None" if is_optional(kind) else "")


def unknown_key(key: str, known: list[str]) -> str:
    """Returns the message for an unknown key, with the nearest known one."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"unknown key {key!r}; did you mean {near[0]!r}?"
    return f"unknown key {key!r}; accepted: {', '.join(sorted(known))}"
