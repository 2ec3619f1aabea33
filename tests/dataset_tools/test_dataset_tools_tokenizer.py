"""`tokenizer` trains on the captions of any source, the same ones for the same seed."""

import json
from pathlib import Path

import numpy as np
import pytest
from dataset_tools_runs import Capture, contents, run
from pictures import encode, photo

from clip_jax.dataset_tools.token_lengths import LONGEST, token_lengths
from clip_jax.dataset_tools.tokenizer import draw
from clip_jax.text.tokenizer import load_tokenizer

WORDS = ("red", "green", "blue", "large", "small", "apple", "pear", "house", "boat", "river")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .csv with 200 rows over one image file each."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "image.jpg").write_bytes(encode(photo(20, 20), "JPEG"))
    rng = np.random.default_rng(0)
    lines = ["filepath,title"]
    for number in range(200):
        name = f"{number}.jpg"
        (folder / name).hardlink_to(folder / "image.jpg")
        lines.append(f"{name},a {' '.join(rng.choice(WORDS, 6))}")
    (folder / "set.csv").write_text("\n".join(lines) + "\n")
    return folder / "set.csv"


def test_trains_and_says_what_came_out(table: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "tokenizer"
    ended = run(
        capsys, "tokenizer", f"--data={table}", "--vocab_size=320", f"--output={out}",
        "--context_length=8", "--cleaning=canonicalize",
    )  # fmt: skip
    assert ended.code == 0
    tokenizer = load_tokenizer(out)
    assert tokenizer.context_length == 8
    assert json.loads((out / "tokenizer_config.json").read_text())["options"]["cleaning"] == (
        "canonicalize"
    )
    assert f"vocabulary: {tokenizer.vocab_size} ids, from 200 captions" in ended.out
    captions = [line.partition(",")[2] for line in table.read_text().splitlines()[1:]]
    lengths = token_lengths(tokenizer, captions)
    assert f"tokens a caption: {lengths.mean():.1f} on average" in ended.out
    assert f"longer than 8 tokens: {100 * np.mean(lengths > 8):.1f} %" in ended.out
    assert f"--config.tokenizer.source={out}" in ended.out


def test_the_sample_is_chosen_by_the_seed(table: Path, tmp_path: Path, capsys: Capture) -> None:
    def trained(name: str, seed: int) -> dict[str, bytes]:
        arguments = (f"--data={table}", "--vocab_size=300", "--sample=20", f"--seed={seed}")
        ended = run(capsys, "tokenizer", *arguments, f"--output={tmp_path / name}")
        assert "from 20 captions" in ended.out
        return contents(tmp_path / name)

    first = trained("first", 1)
    assert trained("again", 1) == first
    assert trained("other", 2) != first
    assert draw(5, 10, 0) == [0, 1, 2, 3, 4]
    chosen = draw(1000, 10, 3)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == 10


def test_lengths_count_every_token(table: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "tokenizer"
    run(capsys, "tokenizer", f"--data={table}", "--vocab_size=320", f"--output={out}")
    tokenizer = load_tokenizer(out)
    texts = ["", "red", "red apple " * 40, "boat " * 10_000]
    counts = token_lengths(tokenizer.with_context_length(4), texts)
    rows = tokenizer.with_context_length(500)(texts[:3])
    whole = [int(np.argmax(row == tokenizer.eos_id)) + 1 for row in rows]
    assert counts.tolist() == [*whole, LONGEST]
