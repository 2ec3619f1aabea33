"""What a training run is: every default, once, with its unit.

A file in `configs/` starts from `default_config()`, changes what it wants, and returns it; flags
of the form `--config.optimizer.learning_rate=1e-3` change it further; `build_config` then checks
and freezes it.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from typing import Any, Literal, TypeVar

from ml_collections import config_dict

from clip_jax.data.augmentation import Augmentation
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import ClipConfig


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Which vocabulary reads the captions."""

    source: str = (
        "captions"  # train SentencePiece on the captions; or "clip_bpe", or a saved tokenizer
    )
    vocab_size: int = 8000  # pieces, for "captions"; fewer when the captions are few
    cleaning: Literal["lower", "whitespace", "canonicalize"] = "lower"  # for "captions"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the image-text pairs are."""

    path: str = ""  # folder, CSV, tar files; for "glyphs" a split
    format: Literal["auto", "folder", "csv", "webdataset", "glyphs"] = "auto"
    image_column: str | None = None  # CSV; None: the first column with a usual name
    caption_column: str | None = None  # CSV; likewise
    caption_template: str = "a photo of a {}."  # for class-named folders
    workers: int = 0  # reader processes; 0: threads of the trainer
    max_bad_fraction: float = 0.1  # of the records seen; more undecodable images stop the run


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to 0 (CLIP paper table 18)."""

    learning_rate: float = 5e-4  # peak
    warmup_steps: int = 200
    b1: float = 0.9
    b2: float = 0.98
    eps: float = 1e-6
    weight_decay: float = 0.2  # decoupled; not on gains, biases, position tables, the logit scale
    clip_norm: float | None = 1.0  # of the global gradient; None: no clipping
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    ema_decay: float | None = (
        None  # of the parameters' moving average, which is evaluated and exported
    )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices an axis; -1 takes the rest. The batch is split over data × fsdp, parameters over
    fsdp."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved, and what is kept."""

    every_steps: int | None = 1000
    every_minutes: float | None = 15.0
    keep_newest: int = 2
    keep_every_steps: int | None = None  # checkpoints at multiples of it are kept for ever


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is measured during training and at its end."""

    tasks: tuple[str, ...] = ()  # of clip_jax.evaluation.tasks.TASKS
    every_steps: int | None = None  # None: at the end only
    path: str = ""  # images for "zero_shot" and "retrieval", in any format that data.path takes
    format: Literal["auto", "folder", "csv", "webdataset", "glyphs"] = "auto"
    label_key: str = (
        "class"  # "zero_shot": the metadata field that holds the class name or its number
    )
    classnames: str | None = None  # file, a name a line; None: the names found in the data
    templates: str = "openai"  # prompt templates by name, or a file
    batch_size: int = 256  # images


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """An architecture by name, and the fields of `ClipConfig` that this run changes."""

    name: str = "ViT-B-32"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    def architecture(self) -> ClipConfig:
        """The resolved row; raises `UserError` for an unknown name or field."""
        return get_architecture(self.name, **self.overrides)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    loss: Literal["softmax", "sigmoid"] = "softmax"
    batch_size: int = 256  # pairs, global
    steps: int | None = None  # length of the run; or
    epochs: float | None = None  # passes over the data; counts where steps is None
    seed: int = 0
    log_every_steps: int = 10
    report: bool = True  # write report.html at the end


Config = TypeVar("Config")


def default_config() -> config_dict.ConfigDict:
    """Every key with its default, as the locked `ConfigDict` that config files edit."""
    return _to_config_dict(TrainConfig)


def _to_config_dict(cls: Any) -> config_dict.ConfigDict:
    result = config_dict.ConfigDict()
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kind = hints[field.name]
        if kind is ModelConfig:
            result.model = _model_config_dict()
        elif dataclasses.is_dataclass(kind):
            result[field.name] = _to_config_dict(kind)
        else:
            # A field that may be None is of type object, so that a flag can set it and unset it;
            # build_config looks at the type of what comes.
            value = _default(field)
            is_optional = _is_optional(kind)
            result[field.name] = _optional(value) if is_optional else value
    result.lock()
    return result


def _model_config_dict() -> config_dict.ConfigDict:
    result = config_dict.ConfigDict({"name": ModelConfig().name})
    for field in dataclasses.fields(ClipConfig):
        if field.name != "name":
            result[field.name] = _optional()
    result.lock()
    return result


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _is_optional(kind: Any) -> bool:
    return type(None) in typing.get_args(kind)


def _plain_types(kind: Any) -> tuple[type, ...]:
    """The concrete types of an annotation: `float | None` -> (float,), `Literal["a"]` -> (str,)."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        found = [t for arg in typing.get_args(kind) for t in _plain_types(arg)]
        return tuple(t for t in found if t is not type(None))
    if origin is Literal:
        return (str,)
    return (origin or kind,)


def _optional(value: Any = None) -> config_dict.FieldReference:
    return config_dict.FieldReference(value, field_type=object)


def build_config(values: config_dict.ConfigDict | dict[str, Any]) -> TrainConfig:
    """Checks and freezes a configuration.

    Raises `UserError` that names the key, its value and what would be accepted: an unknown key
    (with the nearest known one), a wrong type, a value outside its choices.
    """
    if isinstance(values, config_dict.ConfigDict):
        values = values.to_dict()
    config = _build(TrainConfig, values, "config")
    _check(config)
    return config


def _build(cls: type[Config], values: dict[str, Any], where: str) -> Config:
    if not isinstance(values, dict):
        raise UserError(f"{where}={values!r}: must be a group of keys")
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise UserError(unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in known]))
    built: dict[str, Any] = {}
    for key, value in values.items():
        name, kind = f"{where}.{key}", hints[key]
        if kind is ModelConfig:
            built[key] = _build_model(value, name)
        elif dataclasses.is_dataclass(kind):
            built[key] = _build(kind, value, name)  # type: ignore[arg-type]
        else:
            built[key] = _coerce(value, kind, name)
    try:
        return cls(**built)
    except (TypeError, ValueError) as error:  # a tuple of other things than numbers, say
        raise UserError(f"{where}: {error}") from error


def _build_model(values: dict[str, Any], where: str) -> ModelConfig:
    fields = typing.get_type_hints(ClipConfig)
    overrides = {}
    for key, value in values.items():
        if key not in fields:
            raise UserError(unknown_key(f"{where}.{key}", [f"{where}.{name}" for name in fields]))
        if key != "name" and value is not None:
            overrides[key] = _coerce(value, fields[key], f"{where}.{key}")
    return ModelConfig(values.get("name", ModelConfig().name), overrides)


def _coerce(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated type: whole floats become ints, lists tuples. Raises `UserError`."""
    if value is None:
        if _is_optional(kind):
            return None
        raise UserError(f"{where}=None: needs a value of type {_spell(kind)}")
    options = typing.get_args(kind) if typing.get_origin(kind) is Literal else None
    if options and value not in options:
        raise UserError(f"{where}={value!r}: choose one of {', '.join(map(repr, options))}")
    for wanted in _plain_types(kind):
        if wanted is bool or isinstance(value, bool):
            if wanted is bool and isinstance(value, bool):
                return value
        elif wanted is float and isinstance(value, int | float):
            return float(value)
        elif wanted is int and isinstance(value, int | float) and value == int(value):
            return int(value)
        elif wanted is tuple and isinstance(value, list | tuple):
            return tuple(value)
        elif isinstance(value, wanted):
            return value
    raise UserError(f"{where}={value!r}: must be {_spell(kind)}")


def _spell(kind: Any) -> str:
    names = {"int": "a whole number", "float": "a number", "str": "a text", "bool": "True or False"}
    spelt = [names.get(t.__name__, t.__name__) for t in _plain_types(kind)]
    return " or ".join(spelt) + (" or None" if _is_optional(kind) else "")


def unknown_key(key: str, known: list[str]) -> str:
    """The message for an unknown key, with the nearest known one."""
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if near:
        return f"unknown key {key!r}; did you mean {near[0]!r}?"
    return f"unknown key {key!r}; accepted: {', '.join(sorted(known))}"


def _check(config: TrainConfig) -> None:
    positive = {
        "config.batch_size": config.batch_size,
        "config.log_every_steps": config.log_every_steps,
        "config.optimizer.learning_rate": config.optimizer.learning_rate,
        "config.checkpoint.keep_newest": config.checkpoint.keep_newest,
        "config.checkpoint.every_steps": config.checkpoint.every_steps,
        "config.checkpoint.every_minutes": config.checkpoint.every_minutes,
        "config.checkpoint.keep_every_steps": config.checkpoint.keep_every_steps,
        "config.evaluation.every_steps": config.evaluation.every_steps,
        "config.evaluation.batch_size": config.evaluation.batch_size,
        "config.steps": config.steps,
        "config.epochs": config.epochs,
    }
    for key, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{key}={value}: must be greater than 0, and finite")
    optimizer = config.optimizer
    ranges = {
        "config.seed": (config.seed, 0, 2**31 - 1),
        "config.optimizer.warmup_steps": (optimizer.warmup_steps, 0, math.inf),
        "config.optimizer.b1": (optimizer.b1, 0, 1),
        "config.optimizer.b2": (optimizer.b2, 0, 1),
        "config.optimizer.eps": (optimizer.eps, 0, 1),
        "config.optimizer.weight_decay": (optimizer.weight_decay, 0, math.inf),
        "config.optimizer.clip_norm": (optimizer.clip_norm, 0, math.inf),
        "config.optimizer.ema_decay": (optimizer.ema_decay, 0, 1),
        "config.data.workers": (config.data.workers, 0, 1024),
        "config.data.max_bad_fraction": (config.data.max_bad_fraction, 0, 1),
    }
    for key, (value, low, high) in ranges.items():
        if value is not None and not low <= value <= high:
            raise UserError(f"{key}={value}: must be {low} to {high}")
    if config.steps is None and config.epochs is None:
        raise UserError("config.steps=None, config.epochs=None: give one of them")
    if not config.data.path:
        raise UserError(
            "config.data.path='': give a folder of images, a CSV file or tar files "
            "(--config.data.path=…)"
        )
    for name in ("data", "fsdp", "tensor"):
        size = getattr(config.mesh, name)
        if size != -1 and size < 1:
            raise UserError(f"config.mesh.{name}={size}: must be at least 1, or -1 for the rest")
    if config.mesh.tensor != 1:
        raise UserError(f"config.mesh.tensor={config.mesh.tensor}: only 1 is built so far")
    config.model.architecture()


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """The full resolved configuration, JSON-able; `build_config` reads it back."""
    values = dataclasses.asdict(config)
    values["model"] = {"name": config.model.name, **config.model.overrides}
    return values
