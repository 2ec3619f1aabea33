"""WinoGAViL: the prompt, and tables that are none."""

from pathlib import Path

import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation.associations import Association, read_associations


@pytest.mark.parametrize(("cue", "prompt"), [("Apple", "An apple"), ("full moon", "A full moon")])
def test_prompt(cue: str, prompt: str) -> None:
    assert Association(cue, ("a",), (True,)).prompt == prompt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cue,candidates\nx,['a']", r"row 1: 'associations'; accepted are columns cue"),
        ("cue,candidates,associations\nx,a b,['a']", r"row 1: .*; accepted"),
        ("cue,candidates,associations\nx,\"['a']\",\"['b']\"", r"row 1: associations \['b'\] of"),
        ("cue,candidates,associations\nx,\"['a']\",[]", r"row 1: associations \[\] of"),
        ("cue,candidates,associations\n", "has no row"),
    ],
)
def test_wrong_tables(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_associations(str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "more.csv").write_text("")
    with pytest.raises(UserError, match="has 2 CSV files"):
        read_associations(str(tmp_path))
