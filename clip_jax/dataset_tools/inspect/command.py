"""Writes an HTML page about image-text data: what is in it, what is wrong with it, how fast it is.

python -m clip_jax.data inspect --config=configs/own_images.py --data=photos --output=page.html
python -m clip_jax.data inspect --config=runs/mine --output=page.html
python -m clip_jax.data inspect --data='shards/*.tar' --output=page.html

Samples are shown as training with the configuration would see them, by its rules, crop and
tokenizer; with a run's folder as that run does; without --config by the defaults. The page has
sizes, lengths and duplicates, what cannot be used and why, and how fast each stage is. In large
data --limit records, at equal distances, are looked at.
"""

from absl import flags

from clip_jax.data.records import Source
from clip_jax.dataset_tools.bad_samples import describe_kinds
from clip_jax.dataset_tools.data_flags import (
    define_data_flags,
    define_workers,
    open_data,
    title,
)
from clip_jax.dataset_tools.inspect.as_trained import named_loader, trained_loader
from clip_jax.dataset_tools.inspect.survey import survey
from clip_jax.dataset_tools.output_files import output_file, write_text
from clip_jax.dataset_tools.workers import evenly
from clip_jax.errors import UserError
from clip_jax.training.config import TrainConfig

FLAGS = flags.FlagValues()
_DATA = define_data_flags(FLAGS)
_WORKERS = define_workers(FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "HTML file to write.", flag_values=FLAGS)
_SAMPLES = flags.DEFINE_integer(
    "samples", 24, "Number of samples shown.", lower_bound=0, upper_bound=1000, flag_values=FLAGS
)
_LIMIT = flags.DEFINE_integer(
    "limit", 2000, "Most records that are looked at.", lower_bound=1, flag_values=FLAGS
)


def main() -> int:
    """Inspects the data, writes the page, and prints the key figures."""
    output = output_file(_OUTPUT.value)
    if output is None:
        raise UserError("--output: is missing; give a file, such as --output=page.html")
    import jax

    # Nothing is trained here, so an accelerator must not be taken from a training run.
    jax.config.update("jax_platforms", "cpu")
    config = _DATA.read()
    loader = named_loader(config)  # reports mistakes before the long work
    source = open_data(config)
    found = survey(source, evenly(len(source), _LIMIT.value), workers=_WORKERS.value)
    if not found.facts:
        raise UserError(
            f"data {title(config)}: none of {found.looked_at:,} samples can be used"
            f" ({describe_kinds(found.kinds())}), such as {found.bad[0].key}: {found.bad[0].reason}"
        )
    from clip_jax.dataset_tools.inspect.page import build_page

    page, figures = build_page(
        title(config),
        source,
        found,
        loader or trained_loader(config, source, found),
        about=_about(source, config),
        samples=_SAMPLES.value,
    )
    write_text(output, page)
    for value, label in figures:
        print(f"{label}: {value}")
    kinds = source.dropped.counts + found.kinds()
    if kinds:
        print(f"cannot be used: {describe_kinds(kinds)}")
    print(f"written: {output}")
    return 0


def _about(source: Source, config: TrainConfig) -> list[tuple[str, str]]:
    """(name, value) facts on the data."""
    settings = _DATA.about(config)
    rows = [("configuration", settings.pop("config"))]
    rows += [(f"config.{key}", str(value)) for key, value in settings.items()]
    if config.data.mixture:
        rows.append(("looked at", "of each source by its size, not by its weight"))
    return [*rows, ("fingerprint", source.fingerprint)]
