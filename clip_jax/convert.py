"""Converts a model between layouts: our own, Hugging Face's and open_clip's.

python -m clip_jax.convert --source=openai/clip-vit-base-patch32 --format=clip_jax --output=b32
python -m clip_jax.convert --source=runs/mine --format=huggingface --output=mine_hf
"""

import sys

from absl import flags

from clip_jax import command_line
from clip_jax.arguments import local_path
from clip_jax.errors import UserError

_SOURCE = flags.DEFINE_string(
    "source",
    None,
    "What clip_jax.load takes: a folder, a file of weights, a run, a hub id, a URL (gs://, s3://).",
)
_FORMAT = flags.DEFINE_string(
    "format", "clip_jax", "Layout to write: clip_jax, huggingface or open_clip."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write: new, empty, or a model's.")
_ARCHITECTURE = flags.DEFINE_string(
    "architecture", None, "Name of the architecture, for files that do not say theirs."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "Tokenizer to store instead of the source's: a name or a path."
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the parameters.")
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size", None, "Pixels; the table of positions is interpolated.", lower_bound=1
)
_CONTEXT_LENGTH = flags.DEFINE_integer(
    "context_length", None, "Tokens; the table of positions is interpolated.", lower_bound=1
)
_REVISION = flags.DEFINE_string("revision", None, "Branch, tag or commit of a hub id.")


def main() -> int:
    """Reads the model, writes it, and checks the output by opening it."""
    if not _SOURCE.value:
        raise UserError("--source: is missing; give a folder, a file of weights, or a hub id")
    if not _OUTPUT.value:
        raise UserError("--output: is missing; give a new folder")
    import dataclasses

    from clip_jax.models.config import override
    from clip_jax.models.two_tower import count_trainable
    from clip_jax.text.tokenizer import Tokenizer, get_tokenizer
    from clip_jax.weights.fitting import fitting
    from clip_jax.weights.layouts.layout import NoTokenizerError
    from clip_jax.weights.load import open_model
    from clip_jax.weights.resolve import resolve_source
    from clip_jax.weights.save import check_output, save_model

    output = local_path(_OUTPUT.value, "--output")
    path = resolve_source(_SOURCE.value, revision=_REVISION.value)
    check_output(output, path)
    found = open_model(path, _ARCHITECTURE.value)
    asked = {"image_size": _IMAGE_SIZE.value, "context_length": _CONTEXT_LENGTH.value}
    changes = {key: value for key, value in asked.items() if value is not None}
    config = override(found.config, dtype=_DTYPE.value, **changes)
    print(f"{_SOURCE.value}: {found.layout}, {config.name}", file=sys.stderr)
    tokenizer: Tokenizer | None = None
    try:
        if _TOKENIZER.value:
            tokenizer = fitting(get_tokenizer(_TOKENIZER.value), config, "--tokenizer")
        else:
            tokenizer = found.own_tokenizer(config)
    except NoTokenizerError as error:
        print(f"without a tokenizer: {error}", file=sys.stderr)
    params = found.params(config, _DTYPE.value, place=lambda path, leaf: leaf, show=True)
    # The reader of the file, not the file, chooses the dtype of the computation.
    stored = dataclasses.replace(config, dtype="float32")
    save_model(output, _FORMAT.value, stored, params, tokenizer, source=_SOURCE.value)
    again = open_model(output)
    print(
        f"written: {output} ({_FORMAT.value}, {again.config.name}, "
        f"{count_trainable(params):,} parameters, "
        + ("with its tokenizer)" if tokenizer is not None else "without a tokenizer)")
    )
    return 0


if __name__ == "__main__":
    command_line.run(main, sys.argv)
