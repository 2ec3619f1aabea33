"""Edits of a `tokenizer.json` that keep special strings in a text as text."""

from collections.abc import Collection
from typing import Any

from clip_jax.errors import UserError
from clip_jax.text.byte_pairs import vocabulary_of_tokenizer_json

# Hidden names start with these noncharacters, and `without_marks` keeps them out of texts.
_MARKS = "\ufdd0\ufdd1\ufdd2"


def hide_tokens(spec: dict[str, Any], tokens: Collection[str]) -> dict[str, Any]:
    """A parsed `tokenizer.json` with `tokens` renamed so that no text contains them.

    Removing them from the added tokens is not enough: a unigram model finds any piece of its
    vocabulary in a text, even control symbols, and a word-level model any word.
    """
    hidden = set(tokens)

    def rename(name: str) -> str:
        return _MARKS + name if name in hidden else name

    model = dict(spec["model"])
    vocab = model.get("vocab")
    if isinstance(vocab, dict):
        model["vocab"] = {rename(name): i for name, i in vocab.items()}
    elif isinstance(vocab, list):
        model["vocab"] = [[rename(name), score] for name, score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = rename(model["unk_token"])
    if model.get("merges"):
        pairs = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
        model["merges"] = [
            pair for pair in pairs if hidden.isdisjoint(pair) and "".join(pair) not in hidden
        ]
    added = [
        {**token, "content": rename(token["content"])} for token in spec.get("added_tokens") or ()
    ]
    return {**spec, "model": model, "added_tokens": added}


def without_marks(text: str) -> str:
    """The text; if it contains all marks, in any order, the first mark becomes U+FFFD."""
    return text.replace(_MARKS[0], "\ufffd") if all(mark in text for mark in _MARKS) else text


def with_lowercase(spec: dict[str, Any]) -> dict[str, Any]:
    """A parsed `tokenizer.json` that lower-cases first, as SigLIP 2 does before Gemma's steps."""
    normalizer = spec.get("normalizer")
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    if any(step.get("type") == "Lowercase" for step in steps):
        return spec
    return {
        **spec,
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *steps]},
    }


def is_clip_bpe(spec: dict[str, Any]) -> bool:
    """Whether a parsed `tokenizer.json` is a byte-pair vocabulary of CLIP's kind."""
    model = spec.get("model") or {}
    if model.get("end_of_word_suffix") != "</w>" or "merges" not in model:
        return False
    try:
        return "<|startoftext|>" in vocabulary_of_tokenizer_json(spec).ids
    except UserError:
        return False
