"""Configuration of a training run: the only place of every default, with its unit.

A file in `configs/` starts from `default_config()`, changes values and returns it. Flags such as
`--config.optimizer.learning_rate=1e-3` change it further; `build_config` then checks and freezes
it.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any, Literal

from ml_collections import config_dict

from clip_jax.data.options import SourceConfig, SourceFields
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.images.augmentation import Augmentation
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import KINDS, ClipConfig, SharedConfig, part_fields
from clip_jax.training.config_values import build, optional, to_config_dict


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Vocabulary of the captions."""

    source: str = (
        "captions"  # train SentencePiece on the captions; or "clip_bpe", or a saved tokenizer
    )
    vocab_size: int = 8000  # pieces, for "captions"; fewer when the captions are few
    cleaning: Literal["lower", "whitespace", "canonicalize"] = "lower"  # for "captions"


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Location of the image-text pairs, and options of reading them."""

    # A mixture replaces path: groups of a source's keys (path, format, caption_column, …), each
    # with "weight", its share of the stream. Keys that a group lacks are as in `config.data`.
    # Example: ({"path": "a/*.tar", "weight": 3.0}, {"path": "b.csv", "weight": 1.0}).
    mixture: tuple[dict[str, Any], ...] = ()
    # Streaming reads tars without indexing them all, and shuffles within a few shards at a time.
    streaming: bool = False
    streams: int | None = None  # number read in parallel; must divide the batch; None: up to 64
    window_shards: int = 2  # number of shards among which a stream shuffles
    workers: int = 0  # reader processes; 0: threads of the trainer
    max_bad_fraction: float = 0.1  # share of unusable records above which the run stops


@dataclasses.dataclass(frozen=True)
class TowerOptimizerConfig:
    """Optimizer settings of one tower."""

    learning_rate_multiplier: float = 1.0
    # The learning rate has this factor once per block, from the last to the first. Embeddings have
    # one more than the first block; norms, pools and projections after the blocks have none (Bao
    # et al. 2021, BEiT).
    layer_decay: float = 1.0
    weight_decay: float | None = None  # None: the run's


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay to 0 (CLIP paper table 18)."""

    name: str = "adamw"  # or adafactor, lion, muon, lamb, sgd, … of optax and optax.contrib
    options: dict[str, Any] | None = None  # its further arguments, such as {"momentum": 0.9}
    learning_rate: float = 5e-4  # peak
    warmup_steps: int = 200
    b1: float = 0.9  # b1, b2 and eps apply to Adam and its relatives, including muon's Adam part
    b2: float = 0.98
    eps: float = 1e-6
    # Decay is decoupled for every optimizer: each step subtracts learning rate × this × parameter,
    # except for gains, biases, position tables and the logit scale.
    weight_decay: float = 0.2
    clip_norm: float | None = 1.0  # maximum global gradient norm; None: no clipping
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    ema_decay: float | None = (
        None  # for a moving average of the parameters, which is evaluated and exported
    )
    vision: TowerOptimizerConfig = dataclasses.field(default_factory=TowerOptimizerConfig)
    text: TowerOptimizerConfig = dataclasses.field(default_factory=TowerOptimizerConfig)
    # These regular expressions match whole parameter paths, such as "vision/transformer/.*"; LiT:
    # ("vision/.*",). Frozen parameters have no optimizer state and no backward pass.
    freeze: tuple[str, ...] = ()
    # The towers process the batch in this many parts, but the loss sees all of it: the exact
    # gradient with the memory of one part, for one more forward pass (Gao et al. 2021, GradCache).
    microbatches: int = 1


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; -1 takes the rest.

    The batch is split over data × fsdp, parameters and optimizer over fsdp, heads, MLPs and
    vocabulary over tensor.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True)
class InitConfig:
    """Initial parameters of a run; a checkpoint in the workdir takes precedence."""

    # The source is anything that `clip_jax.load` takes; "": random values. The token table brings
    # its tokenizer, unless tokenizer.source names another; positions are resized to fit.
    source: str = ""
    only: tuple[str, ...] = ()  # regular expressions of parameters to take, as in freeze; (): all


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Intervals of checkpoints, and their retention."""

    every_steps: int | None = 1000
    every_minutes: float | None = 15.0
    keep_newest: int = 2
    keep_every_steps: int | None = None  # keeps checkpoints at its multiples for ever


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(TaskData):
    """Evaluations during training and at its end, on images of any format that data.path takes.

    Columns and caption weights default to those of `config.data`.
    """

    tasks: tuple[str, ...] = ()  # of clip_jax.evaluation.tasks.TASKS
    every_steps: int | None = None  # None: at the end only


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Name of an architecture, and the fields of `ClipConfig` that this run changes."""

    name: str = "ViT-B-32"
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    def architecture(self) -> ClipConfig:
        """Returns the resolved row; raises `UserError` for an unknown name or field."""
        try:
            return get_architecture(self.name, **self.overrides)
        except UserError as error:
            raise UserError(f"config.model: {error}") from error

    @classmethod
    def config_dict(cls) -> config_dict.ConfigDict:
        """Returns the group `config.model`: the name, and every field of `ClipConfig`, unset.

        A tower's group has the fields of all kinds.
        """
        result = config_dict.ConfigDict({"name": cls().name})
        for field in dataclasses.fields(SharedConfig):
            if field.name != "name":
                result[field.name] = optional()
        for part in KINDS:
            group = config_dict.ConfigDict()
            for name in part_fields(part):
                group[name] = optional()
            result[part] = group
        result.lock()
        return result

    @classmethod
    def from_values(cls, values: dict[str, Any], where: str) -> ModelConfig:
        """Builds it from the group `config.model`; None leaves a field unchanged."""
        del where
        overrides: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, dict):
                value = {name: v for name, v in value.items() if v is not None}
            if key != "name" and value not in (None, {}):
                overrides[key] = value
        return cls(values.get("name", cls().name), overrides)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Configuration of one training run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    loss: Literal["softmax", "sigmoid"] = "softmax"
    # All have the same value and gradient. Memory decides the default: 32,768 pairs on one v5e chip
    # take 32 MiB chunked and 4.1 GiB dense (docs/scale.md); the towers outweigh the arithmetic.
    loss_implementation: Literal["dense", "ring", "chunked"] = "chunked"
    batch_size: int = 256  # pairs, global
    steps: int | None = None  # length of the run; or
    epochs: float | None = None  # passes over the data; used if steps is None
    seed: int = 0
    log_every_steps: int = 10
    report: bool = True  # write report.html at the end

    def task_data(self) -> TaskData:
        """Returns the data of the run's evaluations.

        Source options that the evaluation leaves at their defaults, except the split, come from the
        training data.
        """
        own = {"split"} | ({"caption_weights"} if self.evaluation.caption_column else set())
        default = SourceFields()
        shared = {
            field.name: getattr(self.data, field.name)
            for field in dataclasses.fields(SourceFields)
            if field.name not in own
            and getattr(self.evaluation, field.name) == getattr(default, field.name)
        }
        return dataclasses.replace(self.evaluation, **shared)


def default_config() -> config_dict.ConfigDict:
    """Returns every key with its default, as the locked `ConfigDict` that config files edit."""
    return to_config_dict(TrainConfig)


def build_config(values: config_dict.ConfigDict | dict[str, Any]) -> TrainConfig:
    """Checks and freezes a configuration.

    Raises `UserError` that names the key, its value and what would be accepted: an unknown key
    (with the nearest known one), a wrong type, a value outside its choices.
    """
    if isinstance(values, config_dict.ConfigDict):
        values = values.to_dict()
    config = build(TrainConfig, values, "config")
    _check(config)
    return config


def _check_ranges(config: TrainConfig) -> None:
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
        "config.optimizer.microbatches": config.optimizer.microbatches,
        "config.optimizer.vision.learning_rate_multiplier": (
            config.optimizer.vision.learning_rate_multiplier
        ),
        "config.optimizer.text.learning_rate_multiplier": (
            config.optimizer.text.learning_rate_multiplier
        ),
        "config.steps": config.steps,
        "config.epochs": config.epochs,
    }
    for key, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{key}={value}: must be greater than 0, and finite")
    if config.batch_size == 1:
        raise UserError(
            f"config.batch_size=1: {config.loss} learns to tell a pair from the others of its "
            "batch, and there are none; give at least 2 (256 and more are usual)"
        )
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
        "config.optimizer.vision.layer_decay": (optimizer.vision.layer_decay, 0, 1),
        "config.optimizer.text.layer_decay": (optimizer.text.layer_decay, 0, 1),
        "config.optimizer.vision.weight_decay": (optimizer.vision.weight_decay, 0, math.inf),
        "config.optimizer.text.weight_decay": (optimizer.text.weight_decay, 0, math.inf),
        "config.data.workers": (config.data.workers, 0, 1024),
        "config.data.streams": (config.data.streams, 1, math.inf),
        "config.data.window_shards": (config.data.window_shards, 1, math.inf),
        "config.data.max_bad_fraction": (config.data.max_bad_fraction, 0, 1),
    }
    for key, (value, low, high) in ranges.items():
        if value is not None and not low <= value <= high:
            raise UserError(f"{key}={value}: must be {low} to {high}")


def _check(config: TrainConfig) -> None:
    _check_ranges(config)
    if config.steps is None and config.epochs is None:
        raise UserError("config.steps=None, config.epochs=None: give one of them")
    if config.data.path and config.data.mixture:
        raise UserError(
            f"config.data.path={config.data.path!r}, config.data.mixture has "
            f"{len(config.data.mixture)} sources: give one of them"
        )
    if config.data.streaming and config.data.mixture:
        raise UserError(
            "config.data.streaming=True: reads one path; config.data.mixture needs indexed sources"
        )
    if config.data.streaming and config.steps is None:
        raise UserError(
            f"config.epochs={config.epochs}: how many samples a stream has is not known before; "
            "give config.steps"
        )
    if not config.data.path and not config.data.mixture:
        raise UserError(
            "config.data.path='': give a folder of images, a CSV file or tar files "
            "(--config.data.path=…)"
        )
    for name in ("data", "fsdp", "tensor"):
        size = getattr(config.mesh, name)
        if size != -1 and size < 1:
            raise UserError(f"config.mesh.{name}={size}: must be at least 1, or -1 for the rest")
    optimizer = config.optimizer
    parts = optimizer.microbatches
    if config.batch_size % parts:
        raise UserError(
            f"config.optimizer.microbatches={parts}: must divide config.batch_size="
            f"{config.batch_size}"
        )
    check_patterns(optimizer.freeze, "config.optimizer.freeze")
    check_patterns(config.init.only, "config.init.only")
    config.model.architecture()


def check_patterns(patterns: Sequence[str], key: str) -> None:
    """Raises a `UserError` that names `key` for an invalid regular expression."""
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(f"{key}: {pattern!r} is no text; a pattern is, such as 'vision/.*'")
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"{key}: {pattern!r} is no regular expression ({error}); one is 'vision/.*'"
            ) from error


def to_dict(config: TrainConfig) -> dict[str, Any]:
    """Returns the resolved configuration, JSON-serialisable; `build_config` reads it back."""
    values = dataclasses.asdict(config)
    values["model"] = {"name": config.model.name, **config.model.overrides}
    return values
