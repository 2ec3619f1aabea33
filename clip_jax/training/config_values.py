"""The `ConfigDict` of a frozen dataclass, which files and flags edit."""

import dataclasses
import typing
from typing import Any

from ml_collections import config_dict

from clip_jax.typed_values import is_optional


def to_config_dict(cls: Any) -> config_dict.ConfigDict:
    """Returns a locked dict of a dataclass's fields and defaults, nested dataclasses as groups.

    A class with its own `config_dict` makes its group itself.
    """
    if hasattr(cls, "config_dict"):
        return cls.config_dict()
    result = config_dict.ConfigDict()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if dataclasses.is_dataclass(kind):
            result[field.name] = to_config_dict(kind)
        else:
            # A field that may be None has type object, so that a flag can set and unset it; `build`
            # checks the type of the value.
            value = default_of(field)
            result[field.name] = optional(value) if is_optional(kind) else value
    result.lock()
    return result


def default_of(field: dataclasses.Field) -> Any:
    """Returns the default of a field of a dataclass."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def optional(value: Any = None) -> config_dict.FieldReference:
    """Returns a value that a flag may replace by one of any type."""
    return config_dict.FieldReference(value, field_type=object)
