"""Flags for a command's data, given directly or by a training configuration."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from absl import flags
from flax.traverse_util import flatten_dict

from clip_jax.arguments import with_home
from clip_jax.command_line import read_config
from clip_jax.data.options import SourceConfig
from clip_jax.data.records import Source
from clip_jax.data.sources.refine import open_refined
from clip_jax.errors import UserError
from clip_jax.training.config import DataConfig, TrainConfig, build_config
from clip_jax.training.source_flags import SourceFlags, as_flags

_OVERRIDES = "config.KEY"  # shown in the help
_OVERRIDE = re.compile(r"--?(no)?config\.")
# A flag that --config replaces, and the equivalent key.
Replaced = tuple[flags.FlagHolder[Any], str]


@dataclass(frozen=True)
class DataFlags:
    """--data and related flags, or --config instead; defined by `define_data_flags`."""

    source: SourceFlags[SourceConfig]
    file: flags.FlagHolder[str | None]
    overrides: flags.FlagHolder[list[str] | None]

    def config(self, replaced: Iterable[Replaced] = ()) -> TrainConfig | None:
        """The configuration as training reads it; None without --config.

        Raises UserError for an invalid one, and for flags that it makes redundant: those of the
        data and `replaced`.
        """
        if not self.file.value:
            if self.overrides.value:
                raise UserError(f"{self.overrides.value[0]}: needs --config=FILE")
            return None
        given = self.source.given()
        path = given.pop("path", None)
        replaced = (*((flag, f"data.{key}") for key, flag in given.items()), *replaced)
        for flag, key in replaced:
            if flag.present:
                instead = f"give --config.{key}=… instead" if key else "give one of them"
                raise UserError(f"--{flag.name}={flag.value}, --config: {instead}")
        file = with_home(self.file.value, "--config")
        values = read_config(file, self.overrides.value or ()).to_dict()
        if path is not None and path.value:
            named = values["data"]
            for key in ("path", "mixture"):
                if named[key]:
                    raise UserError(
                        f"--data={path.value}, config.data.{key}={named[key]!r}: give one of them"
                    )
            named["path"] = path.value
        return build_config(values)

    def moved(self, config: TrainConfig) -> TrainConfig:
        """A run's configuration, with the data of the flags if --data is given; the run's rules
        for captions, images and remote stores stay unless a flag overrides them."""
        named = self.source.read()
        if not named.path:
            return config
        given = {key.partition(".")[0] for key in self.source.given()}
        of_run = {"remote", "captions", "filters", "exclude", "exclude_distance"} - given
        fields = {field.name for field in dataclasses.fields(SourceConfig)} - of_run
        changes = {name: getattr(named, name) for name in fields}
        data = dataclasses.replace(config.data, mixture=(), streaming=False, **changes)
        return dataclasses.replace(config, data=data)

    def open(self, config: TrainConfig | None) -> Source:
        """Opens the data. Raises UserError if nothing usable is found."""
        if config is None:
            return open_refined(self.source.read_needed())
        if config.data.streaming:
            raise UserError(
                "config.data.streaming=True: a stream has no numbers by which samples are looked"
                " at; set it to False"
            )
        from clip_jax.training.run.data import open_data

        return open_data(config)

    def parts(self, config: TrainConfig | None) -> list[tuple[str, str]]:
        """(path, format) of the data, or of each source of a mixture with a positive weight."""
        if config is None:
            named = self.source.read_needed()
            return [(named.path, named.format)]
        data = config.data
        if not data.mixture:
            return [(data.path, data.format)]
        return [(part.path, part.format) for part in data.mixture if part.weight > 0]

    def title(self, config: TrainConfig | None) -> str:
        """The path or paths, as given."""
        if config is None:
            return self.source.read_needed().path
        return config.data.path or ", ".join(part.path for part in config.data.mixture)

    def as_dict(self, config: TrainConfig | None) -> dict[str, Any]:
        """The settings that determine the records and their captions."""
        if config is None:
            return as_flags(self.source.read_needed())
        return {"config": self.file.value, **changed_data(config.data)}


def changed_data(data: DataConfig) -> dict[str, Any]:
    """Dotted key -> value of non-default settings that affect the records."""
    default = flatten_dict(dataclasses.asdict(DataConfig()), sep=".")
    values = flatten_dict(dataclasses.asdict(data), sep=".")
    about_reading = ("remote.", "stream", "window_shards", "workers", "max_bad_fraction")
    return {
        f"data.{key}": value
        for key, value in values.items()
        if value != default.get(key) and not key.startswith(about_reading)
    }


def define_data_flags(values: flags.FlagValues) -> DataFlags:
    """Adds --data and related flags, and --config, to the flags of a command."""
    return DataFlags(
        source=SourceFlags(SourceConfig, values),
        file=flags.DEFINE_string(
            "config",
            None,
            "Instead: a configuration of training, such as configs/own_images.py, and its data.",
            flag_values=values,
        ),
        overrides=flags.DEFINE_multi_string(
            _OVERRIDES,
            None,
            "Changes a key of --config, as in training: --config.data.path=photos.",
            flag_values=values,
        ),
    )


def gather_overrides(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """`argv` with each --config.key=value as a value of the one flag that collects them;
    unchanged if the command has no --config."""
    if _OVERRIDES not in values:
        return list(argv)
    gathered: list[str] = []
    is_open = False  # "--config.key value", in two words
    for argument in argv:
        if _OVERRIDE.match(argument):
            is_open = "=" not in argument
        elif is_open and not argument.startswith("-"):
            is_open = False
        else:
            is_open = False
            gathered.append(argument)
            continue
        gathered.append(f"--{_OVERRIDES}={argument}")
    return gathered
