"""Samples as training sees them, by a configuration, by a model or its run, or by defaults."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from clip_jax.data.records import Source
from clip_jax.dataset_tools.inspect.survey import Survey
from clip_jax.dataset_tools.inspect.throughput import Loader
from clip_jax.errors import UserError
from clip_jax.images.augmentation import Augmentation
from clip_jax.models.config import ClipConfig
from clip_jax.text.tokenizer import Tokenizer, train_sentencepiece
from clip_jax.training.config import TokenizerConfig, TrainConfig, build_config

_DEFAULT_IMAGE_SIZE = 224
_RECORDS = 100_000  # above this, a tokenizer is trained only on the surveyed captions
_ON_ALL = "SentencePiece, trained on all captions, as the trainer does"
_ON_SOME = "SentencePiece, trained on the captions looked at"


@dataclass(frozen=True)
class AsTrained:
    """A loader and its origin."""

    loader: Loader
    tokenizer_name: str
    config: TrainConfig | None = None  # the run's
    config_name: str = ""

    @classmethod
    def by_default(
        cls, tokenizer: Tokenizer, name: str, model: ClipConfig | None = None
    ) -> AsTrained:
        """The loader of a run with default settings and the sizes of `model`."""
        loader = Loader(
            tokenizer=tokenizer,
            image_size=model.image_size if model else _DEFAULT_IMAGE_SIZE,
            interpolation=model.image_interpolation if model else "bicubic",
            augmentation=TrainConfig().augmentation,
        )
        return cls(loader, name)

    def with_sizes(self, image_size: int | None, context_length: int | None) -> AsTrained:
        """A copy with another image size or context length, if given."""
        loader = self.loader
        if image_size is not None:
            loader = dataclasses.replace(loader, image_size=image_size)
        if context_length is not None:
            tokenizer = loader.tokenizer.with_context_length(context_length)
            loader = dataclasses.replace(loader, tokenizer=tokenizer)
        return dataclasses.replace(self, loader=loader)

    def about(self) -> list[tuple[str, str]]:
        """(name, description) of the loader's settings."""
        loader = self.loader
        return [
            ("tokenizer", self.tokenizer_name),
            ("vocabulary", f"{loader.tokenizer.vocab_size:,} ids"),
            ("context length", f"{loader.tokenizer.context_length} tokens"),
            ("image size", f"{loader.image_size} pixels"),
            ("crop", _crop(loader)),
            ("augmentation besides", _besides(loader.augmentation)),
        ]


def _crop(loader: Loader) -> str:
    augmentation = loader.augmentation
    if augmentation.resize == "squash":
        return f"none: the whole image, made square, {loader.interpolation}"
    scale = "–".join(f"{bound:g}" for bound in augmentation.crop_scale)
    return f"{scale} of the area, {loader.interpolation}"


def _besides(augmentation: Augmentation) -> str:
    default = Augmentation()
    changed = [
        f"{field.name}={getattr(augmentation, field.name)}"
        for field in dataclasses.fields(Augmentation)
        if field.name not in ("resize", "crop_scale")
        and getattr(augmentation, field.name) != getattr(default, field.name)
    ]
    return ", ".join(changed) or "none"


def of_captions(found: Survey) -> AsTrained:
    """The loader of a default run, with a tokenizer trained on the captions."""
    settings = TokenizerConfig()
    tokenizer = train_sentencepiece(
        found.captions(), settings.vocab_size, cleaning=settings.cleaning
    )
    return AsTrained.by_default(tokenizer, _ON_SOME)


def of_model(name: str, given: Tokenizer | None, given_name: str | None) -> AsTrained:
    """The loader of a model or, if `name` is the folder of a run, of that run.

    Raises UserError if it is no model, or has no tokenizer and none is given.
    """
    from clip_jax.weights.load import open_model
    from clip_jax.weights.resolve import resolve_source

    path = resolve_source(name)
    found = open_model(path)
    tokenizer = found.own_tokenizer(found.config) if given is None else given
    if tokenizer is None:
        raise UserError(f"--model={name}: has no tokenizer; give one by --tokenizer")
    tokenizer = tokenizer.with_context_length(found.config.context_length)
    trained = AsTrained.by_default(tokenizer, given_name or f"of {name}", found.config)
    config = run_config(path)
    if config is None:
        return trained
    loader = dataclasses.replace(trained.loader, augmentation=config.augmentation)
    return dataclasses.replace(
        trained, loader=loader, config=config, config_name=str(path / "config.json")
    )


def run_config(folder: Path) -> TrainConfig | None:
    """The configuration in config.json of a run's folder; None if it is no run.

    Raises UserError for another version's.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    # Other layouts have a file of this name too.
    if not isinstance(values, dict) or not {"data", "augmentation"} <= values.keys():
        return None
    try:
        return build_config(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def of_config(config: TrainConfig) -> AsTrained | None:
    """The loader of a configuration; None if its tokenizer is trained on the captions.

    Raises UserError for a tokenizer or model that is not available.
    """
    from clip_jax.training.run.initial import open_initial, takes_tokens
    from clip_jax.training.run.opening import make_tokenizer

    initial = open_initial(config)
    if initial is not None and takes_tokens(config):
        name = f"of {config.init.source}"
    elif config.tokenizer.source != "captions":
        name = config.tokenizer.source
    else:
        return None
    return _with_tokenizer(config, make_tokenizer(config, None, initial), name)


def of_config_and_captions(config: TrainConfig, source: Source, found: Survey) -> AsTrained:
    """The loader of a configuration, with a tokenizer trained like the trainer's."""
    from clip_jax.training.run.data import captions_of

    settings = config.tokenizer
    whole = len(source) <= _RECORDS
    tokenizer = train_sentencepiece(
        captions_of(source) if whole else found.captions(),
        settings.vocab_size,
        cleaning=settings.cleaning,
    )
    return _with_tokenizer(config, tokenizer, _ON_ALL if whole else _ON_SOME)


def _with_tokenizer(config: TrainConfig, tokenizer: Tokenizer, name: str) -> AsTrained:
    architecture = config.model.architecture()
    loader = Loader(
        tokenizer=tokenizer.with_context_length(architecture.context_length),
        image_size=architecture.image_size,
        interpolation=architecture.image_interpolation,
        augmentation=config.augmentation,
    )
    return AsTrained(loader, name, config)
