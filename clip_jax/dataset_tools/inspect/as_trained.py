"""Samples as training sees them, by its configuration."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clip_jax.data.records import Record, Source
from clip_jax.data.stream.make_batch import choose_caption
from clip_jax.dataset_tools.inspect.survey import Survey
from clip_jax.images.augmentation import Augmentation, training_image
from clip_jax.text.tokenizer import Tokenizer, train_sentencepiece
from clip_jax.training.config import TrainConfig

_RECORDS = 100_000  # above this, a tokenizer is trained only on the surveyed captions


@dataclass(frozen=True)
class Loader:
    """Processing of a record in training."""

    tokenizer: Tokenizer
    tokenizer_name: str
    image_size: int
    interpolation: str
    augmentation: Augmentation

    def sample(self, record: Record, seed: int) -> tuple[np.ndarray, str]:
        """(uint8 pixels (S, S, 3), chosen caption). Raises DecodeError."""
        rng = np.random.default_rng(seed)
        caption = choose_caption(record, rng)
        pixels = training_image(
            record.image, self.image_size, self.interpolation, self.augmentation, rng
        )
        return pixels, caption

    def tokens(self, captions: Sequence[str]) -> np.ndarray:
        """Ids, int32 (N, L); captions that are too long are cut."""
        return self.tokenizer(list(captions), truncate=True)

    def about(self) -> list[tuple[str, str]]:
        """(name, description) of the settings."""
        augmentation, default = self.augmentation, Augmentation()
        crop = "–".join(f"{bound:g}" for bound in augmentation.crop_scale) + " of the area"
        changed = [
            f"{field.name}={getattr(augmentation, field.name)}"
            for field in dataclasses.fields(Augmentation)
            if field.name not in ("resize", "crop_scale")
            and getattr(augmentation, field.name) != getattr(default, field.name)
        ]
        if augmentation.resize == "squash":
            crop = "none: the whole image, made square"
        return [
            ("tokenizer", self.tokenizer_name),
            ("vocabulary", f"{self.tokenizer.vocab_size:,} ids"),
            ("context length", f"{self.tokenizer.context_length} tokens"),
            ("image size", f"{self.image_size} pixels"),
            ("crop", f"{crop}, {self.interpolation}"),
            ("augmentation besides", ", ".join(changed) or "none"),
        ]


def named_loader(config: TrainConfig) -> Loader | None:
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
    return _loader(config, make_tokenizer(config, None, initial), name)


def trained_loader(config: TrainConfig, source: Source, found: Survey) -> Loader:
    """The loader of a configuration, with a tokenizer trained on captions, as the trainer does."""
    from clip_jax.training.run.data import captions_of

    settings = config.tokenizer
    whole = len(source) <= _RECORDS
    tokenizer = train_sentencepiece(
        captions_of(source) if whole else found.captions(),
        settings.vocab_size,
        cleaning=settings.cleaning,
    )
    captions = "all captions, as the trainer does" if whole else "the captions looked at"
    return _loader(config, tokenizer, f"SentencePiece, trained on {captions}")


def _loader(config: TrainConfig, tokenizer: Tokenizer, name: str) -> Loader:
    from clip_jax.training.run.initial import with_model_of_source

    architecture = with_model_of_source(config).model.architecture()
    return Loader(
        tokenizer=tokenizer.with_context_length(architecture.context_length),
        tokenizer_name=name,
        image_size=architecture.image_size,
        interpolation=architecture.image_interpolation,
        augmentation=config.augmentation,
    )
