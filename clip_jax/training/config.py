"""Configuration of a training run: the only place of every default, with its unit.

A file in `configs/` starts from `default_config()`, changes values and returns it. Flags such as
`--config.optimizer.learning_rate=1e-3` change it further; `build_config` then checks and freezes
it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from ml_collections import config_dict

from clip_jax.arguments import POSITIVE, Checked, Range
from clip_jax.data.attribute_words import attribute_words
from clip_jax.data.options import AttributeWordOptions, SourceConfig
from clip_jax.data.sources import check_format
from clip_jax.data.task_data import TaskData, TaskOptions
from clip_jax.errors import UserError
from clip_jax.images.augmentation import Augmentation
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import ClipConfig, override, part_fields
from clip_jax.models.kinds import KINDS, SharedConfig
from clip_jax.training.adapter_config import AdapterConfig, check_adapter
from clip_jax.training.adversary_config import AdversaryConfig, check_adversary
from clip_jax.training.config_values import optional, to_config_dict
from clip_jax.training.inheritance import with_inherited
from clip_jax.typed_values import build


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Vocabulary of the captions."""

    source: str = (
        "captions"  # train SentencePiece on the captions; or "clip_bpe", or a saved tokenizer
    )
    vocab_size: int = 8000  # pieces, for "captions"; fewer when the captions are few
    cleaning: Literal["lower", "whitespace", "canonicalize"] = "lower"  # for "captions"


@dataclasses.dataclass(frozen=True)
class MixtureConfig(SourceConfig):
    """A source of a mixture, and its share of the stream."""

    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Location of the image-text pairs, and options of reading them."""

    # A mixture replaces path: groups of a source's keys (path, format, caption_column, …), each
    # with "weight", its share of the stream. Keys that a group lacks are as in `config.data`.
    # Example: ({"path": "a/*.tar", "weight": 3.0}, {"path": "b.csv", "weight": 1.0}).
    mixture: tuple[MixtureConfig, ...] = ()
    # Streaming reads tars without indexing them all, and shuffles within a few shards at a time.
    streaming: bool = False
    # Number read in parallel, which must divide the batch; None: up to 64.
    streams: Annotated[int | None, Range(1)] = None
    window_shards: Annotated[int, Range(1)] = 2  # shards among which a stream shuffles
    workers: Annotated[int, Range(0, 1024)] = 0  # reader processes; 0: threads of the trainer
    # Share of unusable records above which the run stops.
    max_bad_fraction: Annotated[float, Range(0, 1)] = 0.1
    # Metadata field with each pair's weight in the loss; "1/FIELD": the inverse of how frequent the
    # field's value is.
    sample_weight: str | None = None
    balance_by: str | None = None  # metadata field whose values come equally often
    attribute_words: AttributeWordOptions = dataclasses.field(default_factory=AttributeWordOptions)


@dataclasses.dataclass(frozen=True)
class TowerOptimizerConfig(Checked):
    """Optimizer settings of one tower."""

    learning_rate_multiplier: Annotated[float, POSITIVE] = 1.0
    # The learning rate has this factor once per block, from the last to the first. Embeddings have
    # one more than the first block; norms, pools and projections after the blocks have none (Bao
    # et al. 2021, BEiT).
    layer_decay: Annotated[float, Range(0, 1)] = 1.0
    weight_decay: Annotated[float | None, Range(0)] = None  # None: the run's


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Checked):
    """AdamW with linear warm-up and cosine decay to 0 (CLIP paper table 18)."""

    # Or adafactor, ademamix, lamb, lars, lion, muon or sgd; a configuration file may add others to
    # training.step.named_optimizer.OPTIMIZERS.
    name: str = "adamw"
    options: dict[str, Any] | None = None  # its further arguments, such as {"momentum": 0.9}
    learning_rate: Annotated[float, POSITIVE] = 5e-4  # peak
    warmup_steps: Annotated[int, Range(0)] = 200
    # b1, b2 and eps apply to Adam and its relatives, including muon's Adam part.
    b1: Annotated[float, Range(0, 1)] = 0.9
    b2: Annotated[float, Range(0, 1)] = 0.98
    eps: Annotated[float, Range(0, 1)] = 1e-6
    # Decay is decoupled for every optimizer: each step subtracts learning rate × this × parameter,
    # except for gains, biases, position tables and the logit scale.
    weight_decay: Annotated[float, Range(0)] = 0.2
    # Maximum global gradient norm; None: no clipping.
    clip_norm: Annotated[float | None, Range(0)] = 1.0
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    # For a moving average of the parameters, which is evaluated and exported.
    ema_decay: Annotated[float | None, Range(0, 1)] = None
    vision: TowerOptimizerConfig = dataclasses.field(default_factory=TowerOptimizerConfig)
    text: TowerOptimizerConfig = dataclasses.field(default_factory=TowerOptimizerConfig)
    # These regular expressions match whole parameter paths, such as "vision/transformer/.*"; LiT:
    # ("vision/.*",). Frozen parameters have no optimizer state and no backward pass.
    freeze: tuple[str, ...] = ()
    # The towers process the batch in this many parts, but the loss sees all of it: the exact
    # gradient with the memory of one part, for one more forward pass (Gao et al. 2021, GradCache).
    microbatches: Annotated[int, POSITIVE] = 1


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
class CheckpointConfig(Checked):
    """Intervals of checkpoints, and their retention."""

    every_steps: Annotated[int | None, POSITIVE] = 1000
    every_minutes: Annotated[float | None, POSITIVE] = 15.0
    keep_newest: Annotated[int, POSITIVE] = 2
    # Keeps checkpoints at its multiples for ever.
    keep_every_steps: Annotated[int | None, POSITIVE] = None


@dataclasses.dataclass(frozen=True)
class EvaluationConfig(TaskOptions):
    """An evaluation during training and at its end, on images of any format that a path takes.

    Keys that its `data` lacks are as in `config.data` if they say how to read: the caption
    template, the remote store, and, where both have one format, the columns and their weights. Its
    path, format, split and filters are its own. None stands for a column that it has not.
    """

    task: str = ""  # of clip_jax.evaluation.tasks.TASKS
    data: SourceConfig = dataclasses.field(default_factory=SourceConfig)
    every_steps: Annotated[int | None, POSITIVE] = None  # None: at the end only

    def task_data(self) -> TaskData:
        """Returns the source with the options of the task, as tasks take them."""
        source = {f.name: getattr(self.data, f.name) for f in dataclasses.fields(SourceConfig)}
        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(TaskOptions)}
        return TaskData(**source, **options)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Name of an architecture, and the fields of `ClipConfig` that this run changes."""

    name: str = "ViT-B-32"  # "": that of config.init.source
    overrides: dict[str, Any] = dataclasses.field(default_factory=dict)

    def architecture(self) -> ClipConfig:
        """Returns the resolved row; raises `UserError` for an unknown name or field."""
        row = get_architecture(self.name)
        try:
            return override(row, **self.overrides)
        except UserError as error:
            raise UserError(f"config.model.{error}") from error

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
            result[part] = config_dict.ConfigDict({name: optional() for name in part_fields(part)})
        result.lock()
        return result

    @classmethod
    def from_values(cls, values: dict[str, Any], where: str) -> ModelConfig:
        """Builds it from the group `config.model`; None leaves a field unchanged."""
        del where
        overrides = _given(values)
        return cls(overrides.pop("name", cls().name), overrides)


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """The values that are set, lists as tuples; a group without any is left out."""
    result = {}
    for key, value in values.items():
        if isinstance(value, dict):
            value = _given(value)
        elif isinstance(value, list):
            value = tuple(value)
        if value not in (None, {}):
            result[key] = value
    return result


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checked):
    """Configuration of one training run."""

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    adapter: AdapterConfig = dataclasses.field(default_factory=AdapterConfig)
    tokenizer: TokenizerConfig = dataclasses.field(default_factory=TokenizerConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    adversary: AdversaryConfig = dataclasses.field(default_factory=AdversaryConfig)
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    # Groups of an evaluation's keys, any number of them. Example: ({"task": "zero_shot",
    # "data": {"path": "photos/test"}, "every_steps": 500}, {"task": "glyphs/letters"}).
    evaluations: tuple[EvaluationConfig, ...] = ()
    loss: str = "softmax"  # or sigmoid, or what a configuration file adds to clip_jax.losses.LOSSES
    # All have the same value and gradient. Memory decides the default: 32,768 pairs on one v5e chip
    # take 32 MiB chunked and 4.1 GiB dense (docs/scale.md); the towers outweigh the arithmetic.
    loss_implementation: Literal["dense", "ring", "chunked"] = "chunked"
    batch_size: Annotated[int, POSITIVE] = 256  # pairs, global
    steps: Annotated[int | None, POSITIVE] = None  # length of the run; or
    epochs: Annotated[float | None, POSITIVE] = None  # passes over the data, if steps is None
    seed: Annotated[int, Range(0, 2**31 - 1)] = 0
    log_every_steps: Annotated[int, POSITIVE] = 10
    report: bool = True  # write report.html at the end

    @property
    def evaluation_batch_size(self) -> int:
        """Images of the largest batch of an evaluation; the default if there is none."""
        sizes = [each.batch_size for each in self.evaluations]
        return max(sizes, default=EvaluationConfig.batch_size)


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
    config = build(TrainConfig, with_inherited(values), "config")
    _check(config)
    return config


def _check(config: TrainConfig) -> None:
    from clip_jax.losses import LOSSES  # imports jax, which flags and files can do without

    sources: dict[str, SourceConfig] = {"config.data": config.data}
    sources |= {f"config.data.mixture[{n}]": part for n, part in enumerate(config.data.mixture)}
    sources |= {f"config.evaluations[{n}].data": x.data for n, x in enumerate(config.evaluations)}
    for where, source in sources.items():
        check_format(source.format, f"{where}.format")
    if config.loss not in LOSSES:
        choices = ", ".join(map(repr, LOSSES))
        raise UserError(f"config.loss={config.loss!r}: choose one of {choices}")
    _check_groups(config)
    if config.data.sample_weight and LOSSES[config.loss].weighted is None:
        raise UserError(
            f"config.data.sample_weight={config.data.sample_weight!r}: config.loss={config.loss!r}"
            " takes no weights"
        )
    if config.batch_size == 1:
        raise UserError(
            f"config.batch_size=1: {config.loss} learns to tell a pair from the others of its "
            "batch, and there are none; give at least 2 (256 and more are usual)"
        )
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
    for number, part in enumerate(config.data.mixture):
        if not part.path:
            where = f"config.data.mixture[{number}]"
            raise UserError(f"{where} has no path; give {{'path': …, 'weight': …}}")
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
    fixed = {"init.only": config.init.only, "optimizer.freeze": optimizer.freeze}
    check_adapter(config.adapter, config.init.source, fixed)
    check_adversary(config.adversary)
    if config.model.name:
        config.model.architecture()
    elif not config.init.source:
        raise UserError("config.model.name='': give a name, or the model of config.init.source")


def _check_groups(config: TrainConfig) -> None:
    """Raises `UserError` for options by group that the source cannot have."""
    data = config.data
    options = {"balance_by": data.balance_by}
    if data.sample_weight is not None and data.sample_weight.startswith("1/"):
        options["sample_weight"] = data.sample_weight
    for name, value in options.items():
        if value and (data.streaming or data.mixture):
            what = "streaming" if data.streaming else "mixture"
            raise UserError(
                f"config.data.{name}={value!r}: counts the records of one indexed source; leave out"
                f" config.data.{what}"
            )
    if data.attribute_words.words is not None:
        attribute_words(data.attribute_words.words, "config.data.attribute_words.words")


def check_patterns(patterns: Sequence[str], key: str) -> None:
    """Raises a `UserError` that names `key` for an invalid regular expression."""
    for pattern in patterns:
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


def flat_values(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Maps dotted keys, such as "evaluations[0].data.path", to the values of nested groups."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= flat_values(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], dict):
            numbered = {f"{key}[{number}]": group for number, group in enumerate(value)}
            found |= flat_values(numbered, prefix)
        else:
            found[prefix + key] = value
    return found
