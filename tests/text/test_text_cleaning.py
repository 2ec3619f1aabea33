"""The three cleaning modes, and that the shortcut for plain ASCII is one."""

import html

import ftfy
import numpy as np
import pytest

from clip_jax.text.cleaning import clean_text


@pytest.mark.parametrize(
    ("cleaning", "expected"),
    [
        ("whitespace", "A GREEN_Apple, café <b>!"),
        ("lower", "a green_apple, café <b>!"),
        ("canonicalize", "a green apple café b"),
    ],
)
def test_cleaning_modes(cleaning, expected):
    assert clean_text("  A\tGREEN_Apple,\n caf\u00c3\u00a9 &amp;lt;b&gt;! ", cleaning) == expected


def test_plain_ascii_shortcut_changes_nothing():
    rng = np.random.default_rng(0)
    plain = [chr(c) for c in range(32, 127) if chr(c) != "&"] + ["\t", "\n"]
    for _ in range(300):
        text = "".join(rng.choice(plain, rng.integers(0, 60)))
        slow = html.unescape(html.unescape(ftfy.fix_text(text)))
        assert clean_text(text, "whitespace") == " ".join(slow.split())


def test_each_character_is_repaired_as_by_ftfy():
    """The short cut for text outside ASCII, one code point after the other."""
    wrong = [
        hex(code)
        for code in (*range(0x80, 0x3100), *range(0xF900, 0x10000), *range(0x3100, 0x30000, 61))
        if not 0xD800 <= code < 0xE000
        and clean_text(text := f"a{chr(code)} b", "whitespace")
        != " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("cleaning", "expected"),
    [("none", " A_b,\tİ! "), ("lowercase", " a_b,\ti̇! "), ("siglip", "ab i̇")],
)
def test_modes_without_repair(cleaning, expected):
    assert clean_text(" A_b,\tİ! ", cleaning) == expected
    assert clean_text("x\ud800", cleaning) == "x\ufffd"
