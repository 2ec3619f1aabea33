"""open_clip's folders, with an open_clip_config.json."""

from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.text.cleaning import clean_text
from clip_jax.text.clip_bpe import ClipBpeTokenizer
from clip_jax.text.tokenizer import OPENAI_VOCAB_SIZE, Tokenizer
from clip_jax.weights.files.tensors import open_tensors
from clip_jax.weights.layouts.layout import (
    Layout,
    Opened,
    Written,
    folder_and_file,
    read_json,
    tokenizer_in,
    weights_in,
)
from clip_jax.weights.layouts.open_clip import IGNORED, open_clip_rules, rules_of
from clip_jax.weights.layouts.open_clip_config import config_from_open_clip
from clip_jax.weights.layouts.open_clip_export import config_to_open_clip
from clip_jax.weights.layouts.state_dict import OPEN_CLIP_WEIGHTS

CONFIG = "open_clip_config.json"
# Our text cleaning mode -> open_clip's nearest mode.
OPEN_CLIP_CLEANING = {
    **{mode: mode for mode in ("lower", "whitespace", "canonicalize")},
    "siglip": "canonicalize",
    "lowercase": "lower",
    "none": "whitespace",
}


def _open(path: Path, architecture: str | None) -> Opened | None:
    place = folder_and_file(path, architecture)
    if place is None or not (place[0] / CONFIG).is_file():
        return None
    folder, file = place
    document = read_json(folder / CONFIG)
    if not isinstance(document.get("model_cfg"), dict):
        raise UserError(f"{folder / CONFIG}: has no object model_cfg")
    config = config_from_open_clip(document)
    tensors = open_tensors(file) if file else weights_in(folder, OPEN_CLIP_WEIGHTS)
    text_cfg = document["model_cfg"].get("text_cfg") or {}
    options = text_cfg.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict):
        raise UserError(f"{folder / CONFIG}: tokenizer_kwargs={options!r}: must be an object")

    def tokenizer() -> Tokenizer | None:
        return tokenizer_in(folder, config)

    return Opened("open_clip", folder, config, tensors, rules_of(tensors), tokenizer, IGNORED)


def _write(config: ClipConfig, tokenizer: Tokenizer | None) -> Written:
    document = config_to_open_clip(config)
    if tokenizer is not None:
        document["model_cfg"]["text_cfg"] |= open_clip_tokenizer(tokenizer)
    return Written({CONFIG: document}, OPEN_CLIP_WEIGHTS[0], open_clip_rules(config))


def open_clip_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer's keys of text_cfg.

    Any name makes open_clip read the folder's tokenizer files; without one it takes OpenAI's.

    Raises `UserError` naming added tokens that open_clip's cleaning, run first, would change.
    """
    added = [token["content"] for token in getattr(tokenizer, "added_tokens", ())]
    is_clip = isinstance(tokenizer, ClipBpeTokenizer)
    if is_clip and tokenizer.vocab_size == OPENAI_VOCAB_SIZE and not added:
        return {}
    cleaning = getattr(tokenizer, "cleaning", "none")
    theirs = OPEN_CLIP_CLEANING[cleaning]
    if is_clip and added and theirs == "lower":
        theirs = "whitespace"  # CLIPTokenizer lower-cases itself, after matching added tokens
    lost = [token for token in added if clean_text(token, theirs) != token]
    if lost and theirs != cleaning:
        raise UserError(
            f"format='open_clip': its cleaning {theirs!r} comes before the tokenizer and would "
            f"change the added tokens {', '.join(lost[:5])}; write clip_jax or huggingface"
        )
    options: dict[str, Any] = {"clean": theirs}
    if getattr(tokenizer, "strip_sep_token", False):
        options["strip_sep_token"] = True
    return {"hf_tokenizer_name": "files of this folder", "tokenizer_kwargs": options}


LAYOUT = Layout("open_clip", _open, _write)
