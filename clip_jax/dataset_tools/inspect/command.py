"""Writes an HTML page about image-text data: what is in it, what is wrong with it, how fast it is.

python -m clip_jax.data inspect --data='shards/*.tar' --output=page.html --tokenizer=clip_bpe
python -m clip_jax.data inspect --config=configs/own_images.py --data=photos --output=page.html

With --config samples are shown as that training would see them, with --model=RUN as that run does;
the page says which. It has sizes, lengths and duplicates, what cannot be used and why, and how fast
each stage is. Of large data --limit records, at equal distances, are looked at.
"""

from absl import flags

from clip_jax.data.records import Source
from clip_jax.dataset_tools.bad_samples import count_kinds, describe_kinds
from clip_jax.dataset_tools.data_flags import changed_data, define_data_flags
from clip_jax.dataset_tools.inspect.as_trained import (
    AsTrained,
    of_captions,
    of_config,
    of_config_and_captions,
    of_model,
)
from clip_jax.dataset_tools.inspect.survey import Survey, evenly, survey
from clip_jax.dataset_tools.inspect.throughput import CHIP_MODELS
from clip_jax.dataset_tools.output_files import output_file, write_text
from clip_jax.dataset_tools.worker_flags import define_workers
from clip_jax.errors import UserError
from clip_jax.text.tokenizer import get_tokenizer
from clip_jax.training.config import TrainConfig

FLAGS = flags.FlagValues()
_DATA = define_data_flags(FLAGS)
_WORKERS = define_workers(FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "HTML file to write.", flag_values=FLAGS)
_MODEL = flags.DEFINE_string(
    "model",
    None,
    "Training run, export, folder or hub id: its tokenizer, image size and context length; a run's"
    " folder: its data, rules and augmentation too.",
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
    upper_bound=4096, flag_values=FLAGS,
)  # fmt: skip
_SAMPLES = flags.DEFINE_integer(
    "samples", 24, "How many are shown.", lower_bound=0, upper_bound=1000, flag_values=FLAGS
)
_LIMIT = flags.DEFINE_integer(
    "limit", 2000, "How many records are looked at, at most.", lower_bound=1, flag_values=FLAGS
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the crops.", lower_bound=0, flag_values=FLAGS)

# These flags are redundant with --config.
_REPLACED = (
    (_MODEL, ""),
    (_TOKENIZER, "tokenizer.source"),
    (_CONTEXT, "model.context_length"),
    (_IMAGE_SIZE, "model.image_size"),
)


def main() -> int:
    """Inspects the data, writes the page, and prints the key figures."""
    output = output_file(_OUTPUT.value)
    if output is None:
        raise UserError("--output: is missing; give a file, such as --output=page.html")
    import jax

    # jax only counts arithmetic, so it must not take an accelerator from a training run.
    jax.config.update("jax_platforms", "cpu")
    config = _DATA.config(_REPLACED)
    trained = _before(config)
    if config is None and trained is not None and trained.config is not None:
        config = _DATA.moved(trained.config)
    title = _DATA.title(config)
    source = _DATA.open(config)
    found = survey(source, evenly(len(source), _LIMIT.value), workers=_WORKERS.value)
    if trained is None:
        if not found.facts:
            raise UserError(_nothing(title, found))
        trained = (
            of_captions(found) if config is None else of_config_and_captions(config, source, found)
        )
    trained = trained.with_sizes(_IMAGE_SIZE.value, _CONTEXT.value)
    from clip_jax.dataset_tools.inspect.findings import gather
    from clip_jax.dataset_tools.inspect.page import build_page, key_figures

    inspection = gather(
        source,
        found,
        trained.loader,
        title=title,
        about=[*_about_source(source, config, trained), *trained.about()],
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


def _before(config: TrainConfig | None) -> AsTrained | None:
    """The loader, if it needs no data; this reports mistakes before the long work."""
    if config is not None:
        return of_config(config)
    tokenizer = get_tokenizer(_TOKENIZER.value) if _TOKENIZER.value else None
    if _MODEL.value:
        return of_model(_MODEL.value, tokenizer, _TOKENIZER.value)
    return None if tokenizer is None else AsTrained.by_default(tokenizer, _TOKENIZER.value or "")


def _nothing(title: str, found: Survey) -> str:
    return (
        f"data {title}: none of {found.looked_at:,} samples can be used"
        f" ({describe_kinds(count_kinds(found.bad))}), such as {found.bad[0].key}:"
        f" {found.bad[0].reason}"
    )


def _about_source(
    source: Source, config: TrainConfig | None, trained: AsTrained
) -> list[tuple[str, str]]:
    """(name, value) facts on the data and on the loader that shows them."""
    if config is None:
        rows = [
            (name.replace("_", " "), str(value))
            for name, value in _DATA.as_dict(None).items()
            if value and name not in ("data", "caption_template") and value != "auto"
        ]
        rows.append(("configuration", "none: --config shows samples as its training sees them"))
        return [*rows, ("fingerprint", source.fingerprint)]
    overrides = _DATA.overrides.value or ()
    name = " ".join([_DATA.file.value or trained.config_name, *overrides])
    rows = [("configuration", name)]
    rows += [(f"config.{key}", str(value)) for key, value in changed_data(config.data).items()]
    if config.data.mixture:
        rows.append(("looked at", "of each source by its size, not by its weight"))
    return [*rows, ("fingerprint", source.fingerprint)]
