"""The three cleaning modes, and that the shortcut for plain ASCII is one."""

import html

import ftfy
import numpy as np
import pytest

from clip_jax.data.text_cleaning import clean_text


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
