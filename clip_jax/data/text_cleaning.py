"""Caption cleaning, and the fixed-length id array that every tokenizer returns.

The cleaning is part of a model's identity: the mode is stored with the tokenizer, never guessed.
"""

import html
import re
import string
from collections.abc import Sequence

import ftfy
import numpy as np

from clip_jax.errors import UserError

CLEANING_MODES = ("lower", "whitespace", "canonicalize")

# On text made of these characters alone ftfy and HTML unescaping change nothing (a test compares
# them); most captions are of this kind and ftfy costs ten times as much as all the rest.
_PLAIN_ASCII = re.compile(r"[ -%'-~\t\n]*")
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def check_cleaning(cleaning: str) -> str:
    """Returns `cleaning` if it names a mode of `clean_text`; raises UserError otherwise."""
    if cleaning not in CLEANING_MODES:
        raise UserError(f"cleaning={cleaning!r}: accepted are {', '.join(CLEANING_MODES)}")
    return cleaning


def clean_text(text: str, cleaning: str) -> str:
    """Cleans one caption.

    All modes repair mojibake (ftfy), unescape HTML twice ("&amp;lt;" is "<"), strip, and make each
    run of white space one space.

    - `whitespace`: nothing more.
    - `lower`: also lower-cased; OpenAI's cleaning.
    - `canonicalize`: also "_" becomes a space and ASCII punctuation goes; big_vision's cleaning of
      zero-shot prompts, which open_clip applies to every text of a SigLIP model.
    """
    if not _PLAIN_ASCII.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    if cleaning == "canonicalize":
        text = text.translate(_NO_PUNCTUATION)
    # Lower-casing comes last: it never makes white space, and both peers order it so.
    text = " ".join(text.split())
    return text if cleaning == "whitespace" else text.lower()


def as_text_list(texts: str | Sequence[str]) -> list[str]:
    """One string or a sequence of them -> list of strings; TypeError names the wrong element."""
    if isinstance(texts, str):
        return [texts]
    items = list(texts)
    for i, text in enumerate(items):
        if not isinstance(text, str):
            raise TypeError(f"a tokenizer takes strings; texts[{i}] is {type(text).__name__}")
    return items


def check_context_length(context_length: int, smallest: int) -> int:
    """Returns `context_length` (tokens) if it is an int >= `smallest`, else raises UserError."""
    if not isinstance(context_length, int) or context_length < smallest:
        raise UserError(
            f"context_length={context_length!r}: accepted is a whole number >= {smallest}"
        )
    return context_length


def pack_ids(rows: Sequence[Sequence[int]], context_length: int, eos_id: int, pad_id: int):
    """Rows of ids, each ending in EOS, -> int32 (N, context_length), padded with `pad_id`.

    A longer row is cut and its last id overwritten by EOS ("sticky" EOS): the text tower pools
    there, so a row without one would have no embedding of its own.
    """
    packed = np.full((len(rows), context_length), pad_id, np.int32)
    for target, ids in zip(packed, rows, strict=True):
        kept = min(len(ids), context_length)
        target[:kept] = ids[:kept]
        if kept < len(ids):
            target[-1] = eos_id
    return packed
