"""Flags of programs that read data: one for each field of `SourceConfig` or a subclass.

So every program takes every option of a source, including future ones.
"""

import dataclasses
import shlex
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar

from absl import flags

from clip_jax.data.options import SourceConfig
from clip_jax.data.sources import formats
from clip_jax.errors import UserError
from clip_jax.typed_values import plain_types

Config = TypeVar("Config", bound=SourceConfig)

_FORMATS = formats()
_USUAL_ENDINGS = [f".{reader.endings[0]}" for reader in _FORMATS.values() if reader.endings]
HELP = {
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
    "classnames": "zero_shot: file with a class name a line, or a published set, such as food101.",
    "templates": "zero_shot: openai, openai_simple, photo, none, a published set, or a file: a"
    " template a line, or a .json of {class: [prompts]}.",
    "batch_size": "Images a batch.",
    "group_key": "zero_shot, skew: metadata field of groups, such as region; or npy[0], of tars.",
    "left_out_group": "zero_shot, skew: group that does not count.",
    "project_out": "zero_shot, skew: also after a projection of texts that takes out gender, race,"
    " or the groups in the first line of a file, such as male,female.",
    "skew_k": "skew: images at the top of a ranking whose groups count.",
    "train_data": "linear_probe, knn, few_shot: labelled images to learn from, read as --data is.",
    "validation_data": "linear_probe, few_shot: labelled images on which a penalty is chosen;"
    " otherwise a tenth of --train_data.",
    "features": "linear_probe, knn, few_shot: embeddings, or what precedes the projection.",
}


class SourceFlags(Generic[Config]):
    """Flags of one program, defined on construction; nested fields have dotted names."""

    def __init__(self, cls: type[Config], values: flags.FlagValues = flags.FLAGS) -> None:
        """Defines a flag for each field of `cls`."""
        self._default = cls()
        self._flags = {
            key: (_define(_flag_name(key), kind, default, values), kind)
            for key, kind, default in _leaves(self._default)
        }

    def read(self) -> Config:
        """Returns the configuration of the flags. Raises UserError for inconsistent values."""
        values = {key: _value(flag, kind) for key, (flag, kind) in self._flags.items()}
        config: Config = _replaced(self._default, values, "")
        return config


def command_flags(config: SourceConfig, cls: type[SourceConfig]) -> list[str]:
    """Returns command-line words for the non-default values of `config`, as flags of `cls`."""
    default = {key: value for key, _, value in _leaves(cls())}
    words = []
    for key, _, value in _leaves(config):
        if key in default and value != default[key]:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(f"--{_flag_name(key)}={shlex.quote(text)}")
    return words


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yields (dotted name, type, value) of each field, including nested ones."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        key, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{key}.")
        else:
            yield key, hints[field.name], value


def _replaced(config: Any, values: Mapping[str, Any], prefix: str) -> Any:
    """Returns `config` with the values by dotted name. Raises UserError if they cannot be."""
    changes = {}
    for field in dataclasses.fields(config):
        key, value = prefix + field.name, getattr(config, field.name)
        nested = dataclasses.is_dataclass(value)
        changes[field.name] = _replaced(value, values, f"{key}.") if nested else values[key]
    try:
        return dataclasses.replace(config, **changes)
    except UserError as error:  # "field=value: …"
        raise UserError(f"--{prefix}{error}") from error


def _flag_name(key: str) -> str:
    return "data" if key == "path" else key


def _define(name: str, kind: Any, default: Any, values: flags.FlagValues) -> flags.FlagHolder[Any]:
    about = HELP.get(name, f"As config.data.{name} of a training run.")
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
