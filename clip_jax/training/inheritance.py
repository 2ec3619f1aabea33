"""Keys of `config.data` that the sources of a mixture and of evaluations take over."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from clip_jax.data.options import SourceConfig
from clip_jax.data.sources import detect_format
from clip_jax.errors import UserError

# Keys that a source of a mixture, and the data of an evaluation, inherit from `config.data`.
_SHARED = {field.name for field in dataclasses.fields(SourceConfig)} - {"path"}
_COLUMNS = ("image_column", "caption_column", "caption_weights")
_OF_READING = (*_COLUMNS, "caption_template", "remote")


def with_inherited(values: dict[str, Any]) -> dict[str, Any]:
    """Adds the keys that sources of a mixture and evaluations inherit from `config.data`."""
    data = values.get("data", {})
    if not isinstance(data, dict):
        return values
    shared = {key: value for key, value in data.items() if key in _SHARED}
    mixture = _each(data.get("mixture", ()), lambda part: shared | part)

    def evaluation(group: dict[str, Any]) -> dict[str, Any]:
        return group | {"data": _evaluation_data(group.get("data", {}), data, mixture or (data,))}

    evaluations = _each(values.get("evaluations", ()), evaluation)
    return values | {"data": data | {"mixture": mixture}, "evaluations": evaluations}


def _each(groups: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """Changes each group of a tuple; what is no group stays for `build` to refuse."""
    if not isinstance(groups, list | tuple):
        return groups
    return tuple(change(group) if isinstance(group, dict) else group for group in groups)


def _evaluation_data(own: Any, data: dict[str, Any], sources: Sequence[Any]) -> Any:
    """Returns the data of an evaluation with what it inherits; `sources` are those of training."""
    if not isinstance(own, dict) or not own.get("path"):
        return own
    inherited = {key: data[key] for key in _OF_READING if key in data}
    left_out: Sequence[str] = ("caption_weights",) if "caption_column" in own else ()
    has_columns = any(data.get(key) for key in _COLUMNS)
    if has_columns and _format_of(own) not in map(_format_of, sources):
        left_out = _COLUMNS
    return {key: value for key, value in inherited.items() if key not in left_out} | own


def _format_of(source: Any) -> str | None:
    """Returns the format of a source; None if its path says nothing."""
    if not isinstance(source, dict) or not isinstance(source.get("path"), str):
        return None
    if (named := source.get("format", "auto")) != "auto":
        return named
    with contextlib.suppress(UserError):  # its opening will name the mistake
        return detect_format(os.path.expanduser(source["path"]))
    return None
