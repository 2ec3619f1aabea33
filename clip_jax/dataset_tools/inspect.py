"""Writes an HTML page about image-text data: what is in it, what is wrong with it, how fast it is.

python -m clip_jax.data inspect --data='shards/*.tar' --output=page.html --tokenizer=clip_bpe

Shown are samples as training sees them, sizes, lengths, duplicates, what cannot be used and why,
and how fast each stage is. Of large data --limit records, at equal distances, are looked at.
"""

from __future__ import annotations

from absl import flags

from clip_jax.data.records import Source
from clip_jax.data.tokenizer import Tokenizer, get_tokenizer, train_sentencepiece
from clip_jax.dataset_tools.bad_samples import count_kinds, describe_kinds
from clip_jax.dataset_tools.output_files import output_file, write_text
from clip_jax.dataset_tools.source_flags import define_source_flags, define_workers
from clip_jax.dataset_tools.survey import Survey, evenly, survey
from clip_jax.dataset_tools.throughput import CHIP_MODELS, Loader
from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.training.config import TokenizerConfig, TrainConfig

FLAGS = flags.FlagValues()
_SOURCE = define_source_flags(FLAGS)
_WORKERS = define_workers(FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "HTML file to write.", flag_values=FLAGS)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Training run, export, folder or hub id: its tokenizer, image size and context length.",
    flag_values=FLAGS,
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer",
    None,
    "Name or path, such as clip_bpe; without it and --model one is trained on the captions.",
    flag_values=FLAGS,
)
_CONTEXT = flags.DEFINE_integer(
    "context_length", None, "Tokens a caption.", lower_bound=2, flag_values=FLAGS
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels; 224 unless --model says otherwise.", lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip
_SAMPLES = flags.DEFINE_integer(
    "samples", 24, "How many are shown.", lower_bound=0, upper_bound=1000, flag_values=FLAGS
)
_LIMIT = flags.DEFINE_integer(
    "limit", 2000, "How many records are looked at, at most.", lower_bound=1, flag_values=FLAGS
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the crops.", lower_bound=0, flag_values=FLAGS)

_DEFAULT_IMAGE_SIZE = 224


def main() -> int:
    """Looks, writes the page, and says the most important of it."""
    output = output_file(_OUTPUT.value)
    if output is None:
        raise UserError("--output: is missing; give a file, such as --output=page.html")
    import jax

    # Only arithmetic is counted: no accelerator is to be taken from a training run.
    jax.config.update("jax_platforms", "cpu")
    tokenizer = get_tokenizer(_TOKENIZER.value) if _TOKENIZER.value else None
    model = None
    if _MODEL.value:
        model, tokenizer = _model(_MODEL.value, tokenizer)
    source = _SOURCE.open()
    found = survey(source, evenly(len(source), _LIMIT.value), workers=_WORKERS.value)
    loader, about = _loader(model, tokenizer, found)
    from clip_jax.dataset_tools.inspect_page import build_page, key_figures
    from clip_jax.dataset_tools.inspection import gather

    inspection = gather(
        source,
        found,
        loader,
        title=_SOURCE.path,
        about=[*_about_source(source), *about],
        samples=_SAMPLES.value,
        seed=_SEED.value,
        models=CHIP_MODELS,
    )
    write_text(output, build_page(inspection))
    for value, label in key_figures(inspection):
        print(f"{label}: {value}")
    if inspection.kinds:
        print(f"cannot be used: {describe_kinds(inspection.kinds)}")
    print(f"written: {output}")
    return 0


def _model(name: str, given: Tokenizer | None) -> tuple[ClipConfig, Tokenizer]:
    """The architecture, and the tokenizer at its context length."""
    from clip_jax.loading import open_model
    from clip_jax.weights.source import resolve_source

    found = open_model(resolve_source(name))
    own = found.own_tokenizer(found.config) if given is None else given
    if own is None:
        raise UserError(f"--model={name}: has no tokenizer; give one by --tokenizer")
    return found.config, own.with_context_length(found.config.context_length)


def _loader(
    model: ClipConfig | None, given: Tokenizer | None, found: Survey
) -> tuple[Loader, list[tuple[str, str]]]:
    """What becomes of records, and that in words."""
    tokenizer = _trained(found) if given is None else given
    name = _TOKENIZER.value or (
        f"of {_MODEL.value}" if given else "SentencePiece, trained on the captions looked at"
    )
    if _CONTEXT.value is not None:
        tokenizer = tokenizer.with_context_length(_CONTEXT.value)
    loader = Loader(
        tokenizer=tokenizer,
        image_size=_IMAGE_SIZE.value or (model.image_size if model else _DEFAULT_IMAGE_SIZE),
        interpolation=model.image_interpolation if model else "bicubic",
        augmentation=TrainConfig().augmentation,
    )
    scale = "–".join(f"{bound:g}" for bound in loader.augmentation.crop_scale)
    about = [
        ("tokenizer", name),
        ("vocabulary", f"{tokenizer.vocab_size:,} ids"),
        ("context length", f"{tokenizer.context_length} tokens"),
        ("image size", f"{loader.image_size} pixels"),
        ("crop", f"{scale} of the area, {loader.interpolation}"),
    ]
    return loader, about


def _trained(found: Survey) -> Tokenizer:
    """As a training run does that is told of no tokenizer."""
    captions = found.captions()
    if not captions:
        raise UserError(
            f"--data={_SOURCE.path}: none of {found.looked_at:,} samples can be used"
            f" ({describe_kinds(count_kinds(found.bad))}), such as {found.bad[0].key}:"
            f" {found.bad[0].reason}"
        )
    settings = TokenizerConfig()
    return train_sentencepiece(captions, settings.vocab_size, cleaning=settings.cleaning)


def _about_source(source: Source) -> list[tuple[str, str]]:
    flags_given = (
        (name.replace("_", " "), value)
        for name, value in _SOURCE.as_dict().items()
        if value and name not in ("data", "caption_template") and value != "auto"
    )
    return [*flags_given, ("fingerprint", source.fingerprint)]
