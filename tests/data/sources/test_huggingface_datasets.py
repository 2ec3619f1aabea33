"""Folders of `datasets.save_to_disk`: splits, features, and what cannot be read."""

from pathlib import Path
from typing import Any

import pytest
from shards import png
from small_sets import outcomes, refused

from clip_jax.data.sources import detect_format, open_source
from clip_jax.errors import DecodeError

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

PNG = png(1)
PICTURES = {"image": datasets.Image(), "caption": datasets.Value("string")}


def dataset(columns: dict[str, Any], features: Any = None) -> Any:
    return datasets.Dataset.from_dict(columns, features=features and datasets.Features(features))


def save(folder: Path, columns: dict[str, Any], features: Any = None) -> Path:
    dataset(columns, features).save_to_disk(str(folder))
    return folder


def stored(*images: bytes) -> list[dict[str, Any]]:
    return [{"bytes": image, "path": None} for image in images]


def test_splits_of_a_dictionary(tmp_path: Path) -> None:
    def saved(name: str, **splits: str) -> Path:
        sets = {
            split: dataset({"image": stored(*[PNG] * len(texts)), "caption": [*texts]}, PICTURES)
            for split, texts in splits.items()
        }
        datasets.DatasetDict(sets).save_to_disk(str(tmp_path / name))
        return tmp_path / name

    both = saved("both", validation="v", train="ab")
    assert detect_format(str(both)) == "huggingface"
    source = open_source(both)
    assert [source.key(0), source.key(1)] == ["train:0", "train:1"]
    assert open_source(both, split="validation").captions(0) == ("v",)
    refused(r"no split 'test'; its splits are: validation, train", both, split="test")
    single = save(tmp_path / "x", {"image": stored(PNG), "caption": ["a"]}, PICTURES)
    assert open_source(single).key(0) == "rows:0"
    refused(r"no split 'test'; it is a single dataset", single, split="test")


def test_bytes_paths_and_missing_images(tmp_path: Path) -> None:
    assert open_source(save(tmp_path / "y", {"jpg": [PNG], "caption": ["a"]}))[0].image == PNG
    (tmp_path / "1.png").write_bytes(PNG)
    paths = [str(tmp_path / "1.png"), str(tmp_path / "gone.png"), None]
    source = open_source(save(tmp_path / "z", {"image_path": paths, "caption": list("abc")}))
    assert source[0].image == PNG
    for index, reason in ((1, r"gone\.png cannot be read"), (2, "rows:2: no image")):
        with pytest.raises(DecodeError, match=reason) as caught:
            source[index]
        assert caught.value.kind == "image_missing"


def test_a_class_is_the_caption_where_there_is_no_text(tmp_path: Path) -> None:
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "big_dog"])}
    columns = {"img": stored(*[PNG] * 4), "label": [1, 0, -1, None]}
    folder = save(tmp_path / "x", columns, features)
    source = open_source(folder)
    assert outcomes(source) == ["a photo of a big dog.", "a photo of a cat."]
    assert source.metadata(0) == {"class": "big_dog"}
    assert source.dropped.counts == {"caption_missing": 2}
    assert source.dropped["rows:2"] == "label -1 has no class name"
    assert source.dropped["rows:3"] == "caption is missing"
    refused("caption_template 'a dog'", folder, caption_template="a dog")


def test_a_view_of_rows_is_kept_and_a_broken_one_is_one_line(tmp_path: Path) -> None:
    pictures = dataset({"image": stored(*[PNG] * 5), "caption": list("abcde")}, PICTURES)
    pictures.select([4, 2, 0]).save_to_disk(str(tmp_path / "x"))
    source = open_source(tmp_path / "x")
    assert outcomes(source) == ["e", "c", "a"]
    (tmp_path / "x" / "state.json").write_text("{broken")
    refused(r"save_to_disk wrote", tmp_path / "x")
