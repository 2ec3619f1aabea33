"""Caption cleaning, which precedes every tokenizer.

It is part of a model's identity: the mode is stored with the tokenizer, never guessed.
"""

import html
import re
import string
import unicodedata

import ftfy
from ftfy.badness import is_bad

from clip_jax.errors import UserError

CLEANING_MODES = ("lower", "whitespace", "canonicalize", "siglip", "lowercase", "none")

# Most captions have only characters that ftfy leaves alone one by one (a test covers all), and ftfy
# costs ten times as much as the rest.
_PLAIN_ASCII = re.compile(r"[ -~\t\n]*")
_CALM = re.compile(  # without line breaks, Latin ligatures, curly quotes, controls, odd widths
    "[\t -~\xa0-\u0131\u0134-\u0148\u014a-\u01c3\u01cd-\u01f0\u01f4-\u02bb\u02bd-\u1fff"
    "\u2000-\u2017\u2020-\u2027\u202a-\u2069\u2070-\u2fff\u3001-\ud7ff\ufe00-\ufe6f"
    "\U00010000-\U0010ffff]*"
)
_CURLY_QUOTES = (("’", "'"), ("‘", "'"), ("“", '"'), ("”", '"'))
_MAYBE_ENTITY = re.compile(r"&(?! |$)")
_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))
# SentencePiece writes a space as "▁".
_SIGLIP = str.maketrans("▁", " ", string.punctuation)
_SURROGATE = re.compile("[\ud800-\udfff]")


def check_cleaning(cleaning: str) -> str:
    """Returns `cleaning` if it names a mode of `clean_text`; raises UserError otherwise."""
    if cleaning not in CLEANING_MODES:
        raise UserError(f"cleaning={cleaning!r}: accepted are {', '.join(CLEANING_MODES)}")
    return cleaning


def clean_text(text: str, cleaning: str) -> str:
    """Cleans one caption.

    Three modes repair mojibake (ftfy), unescape HTML twice ("&amp;lt;" is "<"), strip, and collapse
    each run of white space to one space:

    - `whitespace`: only that.
    - `lower`: also lower-cases; OpenAI's cleaning.
    - `canonicalize`: also turns "_" into a space and deletes ASCII punctuation; big_vision's
      cleaning of zero-shot prompts, which open_clip applies to every text of a SigLIP model.

    Three do not:

    - `siglip`: lower-cases, deletes ASCII punctuation ("_" too), collapses white space; equals
      transformers' SiglipTokenizer.
    - `lowercase`: lower-cases.
    - `none`: changes nothing.

    In every mode a lone surrogate, which UTF-8 cannot encode, becomes U+FFFD.
    """
    if cleaning in ("none", "lowercase", "siglip"):
        if not text.isascii() and _SURROGATE.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if cleaning == "none":
            return text
        text = text.lower()
        return text if cleaning == "lowercase" else " ".join(text.translate(_SIGLIP).split())
    text = _repair(text)
    if cleaning == "canonicalize":
        text = text.translate(_NO_PUNCTUATION)
    # Lower-casing comes last, as in OpenAI's and open_clip's code; it never creates white space.
    text = " ".join(text.split())
    return text if cleaning == "whitespace" else text.lower()


def clean_words(text: str, cleaning: str) -> list[str]:
    """The words of `clean_text(text, cleaning)`, split at white space."""
    if cleaning == "lower":
        return _repair(text).lower().split()
    return clean_text(text, cleaning).split()


def _repair(text: str) -> str:
    """Applies ftfy, then HTML unescaping twice; skips ftfy if the outcome is known without it."""
    if "&" in text and _MAYBE_ENTITY.search(text):
        once = html.unescape(text)
        # If no entity is left, ftfy's looser rules have nothing to find in between.
        if once.isascii() and once.isprintable() and not _MAYBE_ENTITY.search(once):
            return once
    elif text.isascii():
        if text.isprintable() or _PLAIN_ASCII.fullmatch(text):
            return text
    else:
        straight = text
        for curly, quote in _CURLY_QUOTES:
            straight = straight.replace(curly, quote)
        if (
            _CALM.fullmatch(straight)
            and unicodedata.is_normalized("NFC", straight)
            and not is_bad(text)  # no sign of mojibake
            and (straight == text or not is_bad(straight))
        ):
            return straight
    return html.unescape(html.unescape(ftfy.fix_text(text)))
