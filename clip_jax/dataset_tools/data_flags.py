"""Flags of a command: its data, as a configuration of training has it, and the common ones."""

import dataclasses
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

from clip_jax.arguments import with_home
from clip_jax.command_line import read_config
from clip_jax.data.options import SourceConfig
from clip_jax.data.records import Source
from clip_jax.errors import UserError
from clip_jax.training.config import (
    InitConfig,
    TrainConfig,
    build_config,
    default_config,
    to_dict,
)
from clip_jax.training.log.summary import read_config as read_run_config
from clip_jax.training.source_flags import HELP

_OVERRIDES = "config.KEY"  # shown in the help
_OVERRIDE = re.compile(r"--?(no)?config\.")
# These settings say how data is read, not which records and captions they are.
_READING = ("remote.", "stream", "window_shards", "workers", "max_bad_fraction")


@dataclass(frozen=True)
class DataFlags:
    """--config with its changes, and the short names --data and --format for two of them."""

    file: flags.FlagHolder[str | None]
    overrides: flags.FlagHolder[list[str] | None]
    path: flags.FlagHolder[str | None]
    format: flags.FlagHolder[str | None]

    def read(self) -> TrainConfig:
        """The configuration as training would read it, of indexed data: nothing is streamed.

        Raises UserError if it is invalid or names no data.
        """
        changes = []
        if self.path.value:
            changes = [f"--config.data.path={self.path.value}", "--config.data.mixture=()"]
        if self.path.value or self.format.value:
            changes.append(f"--config.data.format={self.format.value or 'auto'}")
        values = read_config(self._start(), [*changes, *(self.overrides.value or ())]).to_dict()
        data = values.get("data") or {}
        if not data.get("path") and not data.get("mixture"):
            raise UserError(
                "--data: is missing; give a folder, a table or .tar files, or a --config that has"
                " them"
            )
        if values.get("steps") is None and values.get("epochs") is None:  # nothing is trained here
            values["steps"] = 1
        config = build_config(values)
        return dataclasses.replace(config, data=dataclasses.replace(config.data, streaming=False))

    def _start(self) -> str | ConfigDict:
        """The file of --config, or the configuration of a run, or the defaults."""
        if not self.file.value:
            return default_config()
        file = with_home(self.file.value, "--config")
        if not os.path.isdir(file):
            return file
        config = run_config(Path(file))
        # The run's own tokenizer is meant, even if it was trained on captions.
        config = dataclasses.replace(config, init=InitConfig(source=file))
        start = default_config()
        start.update(to_dict(config))
        return start

    def about(self, config: TrainConfig) -> dict[str, Any]:
        """Dotted key -> value of the settings that determine the records and their captions;
        "config" is the file, with the changes of the command line."""
        words = [self.file.value, *(self.overrides.value or ())]
        changed = _changed(config.data)
        if config.data.mixture:
            changed["mixture"] = [_changed(part) for part in config.data.mixture]
        return {
            "config": " ".join(filter(None, words)) or "defaults",
            **{f"data.{key}": value for key, value in changed.items()},
        }


def _changed(data: SourceConfig) -> dict[str, Any]:
    """Dotted key -> value of the settings that are not the default, except those of reading."""
    from flax.traverse_util import flatten_dict  # workers need no jax

    default = flatten_dict(dataclasses.asdict(type(data)()), sep=".")
    values = flatten_dict(dataclasses.asdict(data), sep=".")
    return {
        key: value
        for key, value in values.items()
        if value != default.get(key) and not key.startswith(_READING)
    }


def run_config(folder: Path) -> TrainConfig:
    """The configuration in config.json of a run's folder. Raises UserError if there is none."""
    values = read_run_config(folder)
    if not values:
        raise UserError(
            f"--config={folder}: is no run: it has no readable config.json; give a file such as"
            " configs/quickstart.py, or the folder of a run"
        )
    try:
        return build_config(values)
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error


def open_data(config: TrainConfig, **changes: Any) -> Source:
    """Opens the data; `changes`: fields that only `SourceOptions` has. Raises UserError."""
    from clip_jax.training.run import data  # workers need no jax

    return data.open_data(config, **changes)


def parts(config: TrainConfig) -> list[SourceConfig]:
    """The data, or each source of a mixture with a positive weight."""
    return [part for part in config.data.mixture if part.weight > 0] or [config.data]


def title(config: TrainConfig) -> str:
    """The path or paths of the data, as given."""
    return config.data.path or ", ".join(part.path for part in config.data.mixture)


def define_data_flags(values: flags.FlagValues) -> DataFlags:
    """Adds --data, --format, --config and its keys to the flags of a command."""
    return DataFlags(
        file=flags.DEFINE_string(
            "config",
            None,
            "Configuration of training whose data is meant, such as configs/own_images.py, or the"
            " folder of a run.",
            flag_values=values,
        ),
        overrides=flags.DEFINE_multi_string(
            _OVERRIDES,
            None,
            "Changes a key of it, or of the defaults, as in training:"
            " --config.data.caption_column=alt. See docs/data.md for the keys.",
            flag_values=values,
        ),
        path=flags.DEFINE_string(
            "data", None, f"Short for --config.data.path. {HELP['data']}", flag_values=values
        ),
        format=flags.DEFINE_string(
            "format", None, f"Short for --config.data.format. {HELP['format']}", flag_values=values
        ),
    )


def define_workers(values: flags.FlagValues) -> flags.FlagHolder[int]:
    """Adds --workers to a command's flags."""
    return flags.DEFINE_integer(
        "workers",
        os.cpu_count() or 1,
        "Processes; 0 does the work in this one.",
        lower_bound=0,
        flag_values=values,
    )


def gather_overrides(argv: Sequence[str]) -> list[str]:
    """`argv` with each --config.key=value as a value of the one flag that collects them."""
    gathered = []
    is_open = False  # "--config.key value", in two words
    for argument in argv:
        is_key = _OVERRIDE.match(argument) is not None
        is_value = is_open and not argument.startswith("-")
        is_open = is_key and "=" not in argument
        gathered.append(f"--{_OVERRIDES}={argument}" if is_key or is_value else argument)
    return gathered
