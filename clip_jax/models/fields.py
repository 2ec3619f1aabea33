"""Fields of a configuration: each is declared, limited and classified in one place.

A class of fields is a frozen dataclass whose defaults come from the helpers below. Their names say
what a field changes; everything that treats some fields differently reads that from here.
"""

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Collection, Mapping
from typing import Any, Literal, NamedTuple

from clip_jax.errors import UserError

LARGEST = 2**31 - 1

# A field changes one of these: shapes of parameters; what the model computes from them; sizes that
# a stored model can be given anew (position tables are interpolated); the random parameters that it
# starts from; the preparation of images; training alone; how it is computed, not what; how
# parameters are laid out; or nothing ("about").
Effect = Literal[
    "shape", "function", "resize", "start", "image", "training", "computing", "layout", "about"
]
EFFECTS: tuple[Effect, ...] = typing.get_args(Effect)
# The effects of fields by which two models, given the same numbers, compute different functions.
FUNCTION: tuple[Effect, ...] = ("shape", "function", "resize")
# A resumed run may change fields of these effects, since its parameters stay valid.
RESUMABLE: tuple[Effect, ...] = ("training", "computing")


class About(NamedTuple):
    """Classification and limits of a field."""

    effect: Effect
    least: float = 1  # of whole numbers and of each item of a tuple
    most: float = LARGEST
    below: float | None = None  # of a float, with `least`
    tower: Literal["vision", "text"] | None = None  # the only one that uses a shared field
    # The field matters only if another field of its class has one of these values.
    only_if: Mapping[str, Collection[Any]] = {}


def field(effect: Effect, default: Any, **about: Any) -> Any:
    """A dataclass field; `about` has limits by name, and under other names its conditions."""
    limits = {key: value for key, value in about.items() if key in About._fields}
    only_if = {key: value for key, value in about.items() if key not in About._fields}
    metadata = {"about": About(effect, only_if=only_if, **limits)}
    return dataclasses.field(default=default, metadata=metadata)


shape = functools.partial(field, "shape")
function = functools.partial(field, "function")
resizable = functools.partial(field, "resize")
start = functools.partial(field, "start")
image = functools.partial(field, "image", tower="vision")
training = functools.partial(field, "training")
computing = functools.partial(field, "computing")


def about_of(declared: "dataclasses.Field[Any]") -> About:
    """The classification of a field."""
    found: About = declared.metadata["about"]
    return found


def matters(config: Any, declared: "dataclasses.Field[Any]") -> bool:
    """Whether the other fields of its class let a field have any effect."""
    conditions = about_of(declared).only_if
    return all(getattr(config, name) in values for name, values in conditions.items())


@functools.cache
def hints(cls: Any) -> dict[str, Any]:
    """Annotations of a class's fields."""
    found = typing.get_type_hints(cls)
    return {declared.name: found[declared.name] for declared in dataclasses.fields(cls)}


def _fit(value: Any, hint: Any) -> Any:
    """The value as an annotation takes it: lists as tuples, whole floats as ints."""
    if isinstance(value, list):
        value = tuple(value)
    if int in (hint, *typing.get_args(hint)) and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a value has an annotated type; a whole number counts as a float."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        right_length = arguments[-1] is ... or len(arguments) == len(value)
        return right_length and all(_is_a(item, arguments[0]) for item in value)
    if arguments:  # a union
        return any(_is_a(value, option) for option in arguments)
    if hint in (int, float):
        number = isinstance(value, int if hint is int else int | float)
        return number and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint)


def _wanted(hint: Any) -> str:
    """Describes the values that an annotation accepts, for the end of an error message."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"choose one of {', '.join(arguments)}"
    if origin is tuple:
        one_a_stage = arguments[-1] is ...
        return "must be " + ("whole numbers, one a stage" if one_a_stage else "three numbers")
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    names[type(None)] = "null"
    return "must be " + " or ".join(names[option] for option in arguments or (hint,))


def changed(config: Any, changes: Mapping[str, Any], where: str = "") -> Any:
    """The dataclass with some known fields changed; `where` ("vision.") precedes names in errors.

    Raises `UserError` for a value of another type or beyond a limit.
    """
    fitted = {}
    for declared in dataclasses.fields(config):
        if declared.name not in changes or "about" not in declared.metadata:
            continue
        name, hint = where + declared.name, hints(config.__class__)[declared.name]
        value = _fit(changes[declared.name], hint)
        if not _is_a(value, hint):
            raise UserError(f"{name}={value!r}: {_wanted(hint)}")
        _check_limits(name, value, hint, about_of(declared))
        fitted[declared.name] = value
    return dataclasses.replace(config, **fitted)


def _check_limits(name: str, value: Any, hint: Any, about: About) -> None:
    if about.below is not None:
        if not about.least <= value < about.below:
            raise UserError(f"{name}={value}: must be {about.least} to less than {about.below}")
        return
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, int) or isinstance(number, bool):
            continue
        if int in (hint, *typing.get_args(hint)) and number < about.least:
            raise UserError(f"{name}={value}: must be at least {about.least}")
        if number > about.most:
            raise UserError(f"{name}={value}: must be at most {about.most}")


def unknown_field(key: str, known: Collection[str], hint: str = "") -> UserError:
    """The error for a key that no field has: with `hint`, or the nearest known key."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = hint or (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}")
    return UserError(f"{key}: no field of ClipConfig; {hint}")
