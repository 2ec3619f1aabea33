"""Flags of programs that read data: one for each field of `SourceConfig` or a subclass.

So every program takes every option of a source, including future ones.
"""

import dataclasses
import shlex
import typing
from collections.abc import Iterator
from typing import Any, Generic, Literal, TypeVar

from absl import flags

from clip_jax.data.options import SourceConfig
from clip_jax.data.sources import formats
from clip_jax.errors import UserError
from clip_jax.training.config_values import default_of, plain_types

Config = TypeVar("Config", bound=SourceConfig)

_FORMATS = formats()
_USUAL_ENDINGS = [f".{reader.endings[0]}" for reader in _FORMATS.values() if reader.endings]
_HELP = {
    "data": f"Folder, or {', '.join(_USUAL_ENDINGS)} files: one, a folder of them, a glob,"
    " {00000..00006}.tar, a comma list; here or at a URL.",
    "format": f"auto looks at what is there; or one of {', '.join(_FORMATS)}.",
    "image_column": "Column or field of images, or of their paths.",
    "caption_column": "Column or field of captions; several with commas between.",
    "caption_weights": "A number for each caption column: how often it is chosen.",
    "caption_template": "Caption of an image in a class-named folder.",
    "split": "Split of data that have several.",
    "label_key": "zero_shot: metadata field with the class name or number.",
    "labels": "zero_shot: whether labels are names or numbers of lines of --classnames.",
    "classnames": "zero_shot: file with a class name a line.",
    "templates": "zero_shot: openai, openai_simple, photo, none, or a file.",
    "batch_size": "Images a batch.",
}


class SourceFlags(Generic[Config]):
    """Flags of one program, defined on construction; nested fields have dotted names."""

    def __init__(self, cls: type[Config], values: flags.FlagValues = flags.FLAGS) -> None:
        """Defines a flag for each field of `cls`."""
        self._cls = cls
        self._flags: dict[str, flags.FlagHolder[Any]] = {
            key: _define(_flag_name(key), kind, default, values)
            for key, kind, default in _leaves(cls)
        }

    def read(self) -> Config:
        """Returns the configuration of the flags. Raises UserError for inconsistent values."""
        config: Config = self._make(self._cls, "")
        return config

    def read_needed(self) -> Config:
        """Returns `read()`. Raises UserError if --data is missing."""
        config = self.read()
        if not config.path:
            raise UserError("--data: is missing; give a folder, a .csv file or .tar files")
        return config

    def given(self) -> dict[str, flags.FlagHolder[Any]]:
        """Returns the flags on the command line by field, such as "remote.attempts"."""
        return {key: flag for key, flag in self._flags.items() if flag.present}

    def _make(self, cls: Any, prefix: str) -> Any:
        made = {}
        for field, kind in _fields(cls):
            key = prefix + field.name
            if dataclasses.is_dataclass(kind):
                made[field.name] = self._make(kind, f"{key}.")
            else:
                made[field.name] = _value(self._flags[key], kind)
        try:
            return cls(**made)
        except UserError as error:  # "field=value: …"
            raise UserError(f"--{prefix}{error}") from error


def command_flags(config: SourceConfig, cls: type[SourceConfig]) -> list[str]:
    """Returns command-line words for the non-default values of `config`, as flags of `cls`."""
    default = dict(_values(cls(), ""))
    words = []
    for key, value in _values(config, ""):
        if key in default and value != default[key]:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{_flag_name(key)}={shlex.quote(text)}")
    return words


def as_flags(config: SourceConfig) -> dict[str, Any]:
    """Maps flags to a source's values: those common to all sources, and other non-default ones."""
    default = dict(_values(SourceConfig(), ""))
    fields = ("path", "format", "image_column", "caption_column", "caption_template", "split")
    return {
        _flag_name(key): value
        for key, value in _values(config, "")
        if key in fields or (key in default and value != default[key])
    }


def _values(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yields (dotted name, value) of each field."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _values(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, value


def _flag_name(key: str) -> str:
    return "data" if key == "path" else key


def _fields(cls: Any) -> list[tuple[dataclasses.Field[Any], Any]]:
    """Returns (field, its type) for each field."""
    hints = typing.get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _leaves(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted name, type, default) of each field, including nested ones."""
    for field, kind in _fields(cls):
        key = prefix + field.name
        if dataclasses.is_dataclass(kind):
            yield from _leaves(kind, f"{key}.")
        else:
            yield key, kind, default_of(field)


def _define(name: str, kind: Any, default: Any, values: flags.FlagValues) -> flags.FlagHolder[Any]:
    about = _HELP.get(name, f"As config.data.{name} of a training run.")
    if typing.get_origin(kind) is Literal:
        return flags.DEFINE_enum(
            name, default, list(typing.get_args(kind)), about, flag_values=values
        )
    makers: dict[type, Any] = {
        bool: flags.DEFINE_boolean,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        tuple: flags.DEFINE_list,
    }
    make = makers.get(plain_types(kind)[0], flags.DEFINE_string)
    made: flags.FlagHolder[Any] = make(
        name, list(default) if default == () else default, about, flag_values=values
    )
    return made


def _value(flag: flags.FlagHolder[Any], kind: Any) -> Any:
    if plain_types(kind)[0] is not tuple:
        return flag.value
    try:
        return tuple(float(number) for number in flag.value)
    except ValueError:
        raise UserError(
            f"--{flag.name}={','.join(flag.value)}: accepted are numbers with commas between"
        ) from None
