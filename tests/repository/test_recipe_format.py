"""A data format is one file: that of docs/architecture.md is found, read, batched and verified."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dataset_tools_runs import mistake, run
from places import REPOSITORY
from shards import png, words

from clip_jax.data import sources
from clip_jax.data.sources import formats, open_source
from clip_jax.data.stream.pipeline import training_batches
from clip_jax.errors import UserError
from clip_jax.images.augmentation import Augmentation
from clip_jax.training.config import build_config


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Data of the documented format, whose file is in a folder of its own."""
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    recipe = re.search(r"\*\*A data format\*\*.*?```python\n(.*?)```", text, re.DOTALL)
    assert recipe is not None
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "pairs.py").write_text(recipe[1])
    monkeypatch.setattr(sources, "__path__", [*sources.__path__, str(tmp_path / "formats")])
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    (tmp_path / "d.pairs").write_text("0.png number 0\n1.png number 1\n2.png \n0.png number 2\n")
    yield tmp_path / "d.pairs"
    del sys.modules["clip_jax.data.sources.pairs"], sources.pairs  # type: ignore[attr-defined]


def test_its_file_is_all_that_a_format_needs(pairs: Path, capsys) -> None:
    source = open_source(pairs)
    assert [source.captions(n) for n in range(2)] == [("number 0", "number 2"), ("number 1",)]
    assert dict(source.dropped) == {"line 3": "caption is empty"}
    assert open_source(pairs, "pairs").fingerprint == source.fingerprint
    assert open_source(f"{pairs.parent}/*.pairs").key(1) == "1.png"
    batches = training_batches(
        source, words, 8, "bicubic", Augmentation(), batch_size=2, seed=0, max_bad_fraction=1.0
    )
    batch = next(batches)
    batches.close()
    assert batch["images"].shape == (2, 8, 8, 3)
    assert 1 in batch["tokens"][:, 1]
    for flags in ((), ("--format=pairs", "--checksums")):
        ended = run(capsys, "verify", f"--data={pairs}", "--workers=0", *flags)
        assert ended.code == 1  # for the row without a caption
        assert "bad: line 3: caption is empty" in ended.out


def test_messages_list_it(pairs: Path, capsys) -> None:
    said = mistake(capsys, "verify", f"--data={pairs}", "--format=pears")
    assert "'pears' is unknown; known are auto, array_record, csv" in said
    assert ", pairs, " in said
    data = {"path": str(pairs), "format": "pairs"}
    assert build_config({"steps": 1, "data": data}).data.format == "pairs"
    for where, values in (
        ("data", {"data": data | {"format": "pears"}}),
        (r"data.mixture\[0\]", {"data": {"mixture": [data | {"format": "pears"}]}}),
        (r"evaluations\[0\].data", {"evaluations": [{"data": data | {"format": "pears"}}]}),
    ):
        with pytest.raises(UserError, match=f"config.{where}.format 'pears' is unknown; known are"):
            build_config({"steps": 1, "data": data, **values})
    (pairs.parent / "d.pears").write_text("")
    with pytest.raises(UserError, match=r"accepted are a folder and files that end in .*\.pairs,"):
        open_source(pairs.parent / "d.pears")


def test_it_is_gone_afterwards() -> None:
    assert "csv" in formats()
    assert "pairs" not in formats()
