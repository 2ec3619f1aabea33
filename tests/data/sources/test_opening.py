"""Opening data: formats and paths that are unknown, links, and captions that are all one."""

from pathlib import Path
from typing import Any

import pytest
from shards import png, samples, write_shard
from small_sets import WRITERS, refused, write

from clip_jax.data.sources import detect_format, open_source


def test_unknown_paths_and_formats(tmp_path: Path) -> None:
    write(tmp_path / "data.bin", b"x")
    for path, options, message in (
        (tmp_path, {"format": "excel"}, r"'excel' is unknown; known are auto, .*webdataset"),
        (tmp_path / "data.bin", {}, r"data\.bin: unknown kind of file; accepted are .*\.csv, .tsv"),
        (tmp_path / "nowhere", {}, r"nowhere.*does not exist"),
        (tmp_path / "nowhere", {"format": "folder"}, "not a folder"),
        (tmp_path / "nowhere.jsonl", {"format": "jsonl"}, "no jsonl file there; give a .jsonl"),
        (tmp_path, {"format": "tfds"}, r"no dataset_info\.json of TFDS"),
        (tmp_path, {"format": "huggingface"}, "save_to_disk wrote"),
        ("gs://bucket/a.tar", {}, "clip_jax\\[gcs\\]"),
        ("", {}, "empty"),
    ):
        refused(message, path, **options)


@pytest.mark.parametrize(
    ("names", "format"),
    [
        (["0.tar", "0.parquet", "0_stats.json"], "webdataset"),  # as img2dataset writes them
        (["a.PARQUET", "a.array_record-00000-of-00001"], "parquet"),
        (["dataset_info.json", "state.json", "x.tar"], "huggingface"),
        (["dataset_info.json", "features.json", "x.array_record"], "tfds"),
        (["a.csv", "b.jsonl", "features.json"], "folder"),
    ],
)
def test_a_folder_with_signs_of_several_formats(tmp_path, names: list[str], format: str) -> None:
    for name in names:
        write(tmp_path / name, b"")
    assert detect_format(str(tmp_path)) == format


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl", "photos", "data.tar"])
def test_links_to_nowhere_and_without_end(tmp_path: Path, name: str) -> None:
    formats = {"csv": "csv", "tsv": "csv", "jsonl": "jsonl", "tar": "webdataset"}
    link, other = tmp_path / name, tmp_path / "other"
    for target, message in (
        (tmp_path / "gone", r"is a link to .*gone, which does not exist"),
        (Path(name), "is a link to itself"),
        (other, r"is a link to .*other, which leads .* loop of links"),
    ):
        link.symlink_to(target)
        if target == other:
            other.symlink_to(link)
        for format in ("auto", formats.get(name.rpartition(".")[2], "folder")):
            refused(message, link, format)
        if name == "data.tar":
            refused(message, tmp_path / "{data,data}.tar")
        link.unlink()


@pytest.mark.parametrize("kind", ["one class", *(name for name in WRITERS if name != "tfds")])
def test_one_caption_for_all_is_said(tmp_path: Path, kind: str, caplog: Any) -> None:
    for caption, is_said in (("a dog", True), ("a cat", False)):
        path = tmp_path / caption / "in"
        if kind == "one class":
            for n in range(3):
                write(path / ("dog" if n else caption[2:]) / f"{n}.png", png(n))
        else:
            captions = ["a dog", "a dog", caption]
            rows = [{"key": f"{n}", "image": png(n), "caption": captions[n]} for n in range(3)]
            for package in WRITERS[kind][1]:
                pytest.importorskip(package)
            path = WRITERS[kind][0](path, rows)
        for options, expected in (({}, is_said), ({"needs_captions": False}, False)):
            caplog.clear()
            open_source(path, **options)
            assert ("images have one caption" in caplog.text) == expected


@pytest.mark.parametrize(
    ("names", "are_splits"),
    [
        *(("train-0 test-0", True), ("a_train a_val", True), ("Train test", True)),
        *(("dev training", True), ("00000 00001", False), ("train-0 train-1", False)),
        *(("a test", False), ("test", False), ("train_test", False)),
    ],
)
def test_names_of_files_that_are_splits_or_not(
    names: str, are_splits: bool, tmp_path: Path
) -> None:
    for number, name in enumerate(names.split()):
        write_shard(tmp_path / f"{name}.tar", samples(range(number, number + 1)))
    if not are_splits:
        source = open_source(tmp_path)
        assert (len(source), source.split) == (len(names.split()), None)
        refused(r"split='test': .* has no splits", tmp_path, split="test")
        return
    trained = open_source(tmp_path)
    held_out = open_source(tmp_path, preferred_splits=("test", "validation"))
    assert len(trained) == len(held_out) == 1
    assert ["train" in source.split.lower() for source in (trained, held_out)] == [True, False]
    named = open_source(tmp_path, split=held_out.split)
    assert named.captions(0) == held_out.captions(0) != trained.captions(0)
