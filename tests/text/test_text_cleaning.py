"""The cleaning modes, and that the shortcuts around ftfy are ones."""

import html

import ftfy
import pytest
from textbook_tokenizer import random_strings

from clip_jax.text.cleaning import clean_text

MOJIBAKE = "  A\tGREEN_Apple,\n caf\u00c3\u00a9 &amp;lt;b&gt;! "


@pytest.mark.parametrize(
    ("cleaning", "text", "expected"),
    [
        ("whitespace", MOJIBAKE, "A GREEN_Apple, café <b>!"),
        ("lower", MOJIBAKE, "a green_apple, café <b>!"),
        ("canonicalize", MOJIBAKE, "a green apple café b"),
        ("none", " A_b,\tİ! ", " A_b,\tİ! "),
        ("lowercase", " A_b,\tİ! ", " a_b,\ti̇! "),
        ("siglip", " A_b,\tİ! ", "ab i̇"),
    ],
)
def test_cleaning_modes(cleaning, text, expected):
    assert clean_text(text, cleaning) == expected
    assert clean_text("x\ud800", cleaning) == "x\ufffd"


def plainly(text: str) -> str:
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def test_repair_equals_ftfy_and_unescape():
    for text in random_strings(20_010, seed=1):
        assert clean_text(text, "whitespace") == plainly(text), text


def test_each_character_is_repaired_as_by_ftfy():
    """The short cut for text outside ASCII, one code point after the other."""
    wrong = [
        hex(code)
        for code in (*range(0x3100), *range(0xF900, 0x10000), *range(0x3100, 0x30000, 61))
        if not 0xD800 <= code < 0xE000
        and clean_text(text := f"a{chr(code)} b", "whitespace") != plainly(text)
    ]
    assert wrong == []
