"""Folders of `datasets.save_to_disk`."""

import sys

import pytest
from pictures import encode, photo

from clip_jax.data.sources import detect_format, open_source
from clip_jax.errors import DecodeError, UserError

datasets = pytest.importorskip("datasets")
datasets.disable_progress_bars()

PNG = encode(photo(8, 6), "PNG")


def dataset(columns, features=None):
    features = features and datasets.Features(features)
    return datasets.Dataset.from_dict(columns, features=features)


def save(folder, columns, features=None):
    dataset(columns, features).save_to_disk(str(folder))
    return folder


PICTURES = {"image": datasets.Image(), "caption": datasets.Value("string")}


def stored(*images):
    return [{"bytes": image, "path": None} for image in images]


def test_splits_of_a_dictionary(tmp_path):
    def split(*captions):
        return dataset({"image": stored(*[PNG] * len(captions)), "caption": captions}, PICTURES)

    both = datasets.DatasetDict({"validation": split("v"), "train": split("a", "b")})
    both.save_to_disk(str(tmp_path / "both"))
    assert detect_format(str(tmp_path / "both")) == "huggingface"
    source = open_source(tmp_path / "both")
    assert [source.key(0), source.key(1)] == ["train:0", "train:1"]
    assert open_source(tmp_path / "both", split="validation").captions(0) == ("v",)
    with pytest.raises(UserError, match=r"no split 'test'; its splits are: validation, train"):
        open_source(tmp_path / "both", split="test")
    two = datasets.DatasetDict({"a": split("x"), "b": split("y")})
    two.save_to_disk(str(tmp_path / "two"))
    with pytest.raises(UserError, match=r"no split 'train'; its splits are: a, b"):
        open_source(tmp_path / "two")
    datasets.DatasetDict({"b": split("y")}).save_to_disk(str(tmp_path / "one"))
    assert open_source(tmp_path / "one").captions(0) == ("y",)


def test_a_single_dataset_has_no_splits(tmp_path):
    folder = save(tmp_path / "x", {"image": stored(PNG), "caption": ["a"]}, PICTURES)
    assert open_source(folder).key(0) == "rows:0"
    with pytest.raises(UserError, match=r"no split 'test'; it is a single dataset"):
        open_source(folder, split="test")


def test_bytes_paths_and_missing_images(tmp_path):
    folder = save(tmp_path / "x", {"image": [*stored(PNG), None], "caption": ["a", "b"]}, PICTURES)
    source = open_source(folder)
    assert source[0].image == PNG
    with pytest.raises(DecodeError, match="rows:1: no image") as caught:
        source[1]
    assert caught.value.kind == "image_missing"
    folder = save(tmp_path / "y", {"jpg": [PNG], "caption": ["a"]})
    assert open_source(folder)[0].image == PNG
    (tmp_path / "1.png").write_bytes(PNG)
    paths = [str(tmp_path / "1.png"), str(tmp_path / "gone.png"), None]
    source = open_source(save(tmp_path / "z", {"image_path": paths, "caption": list("abc")}))
    assert source[0].image == PNG
    for index, reason in ((1, r"gone\.png cannot be read"), (2, "rows:2: no image")):
        with pytest.raises(DecodeError, match=reason):
            source[index]


def test_captions_of_several_columns_and_bad_rows(tmp_path):
    columns = {
        "picture": stored(*[PNG] * 4),
        "texts": [["one", " "], None, ["two", "three"], []],
        "alt": ["web", None, " ", "alone"],
        "score": [0.5, 1.0, 1.5, None],
        "box": [[1, 2], [3, 4], [5, 6], [7, 8]],
    }
    features = {
        "picture": datasets.Image(),
        "texts": datasets.Sequence(datasets.Value("string")),
        "alt": datasets.Value("string"),
        "score": datasets.Value("float32"),
        "box": datasets.Sequence(datasets.Value("int64")),
    }
    folder = save(tmp_path / "x", columns, features)
    options = {"caption_column": "alt,texts", "caption_weights": (1.0, 3.0)}
    source = open_source(folder, **options)
    assert (source[0].captions, source[0].weights) == (("web", "one"), (1.0, 3.0))
    assert (source[1].captions, source[1].weights) == (("two", "three"), (1.5, 1.5))
    assert source.captions(2) == ("alone",)
    assert source.dropped.counts == {"caption_missing": 1}
    assert source.metadata(1) == {"score": 1.5}
    assert open_source(folder).captions(0) == ("one",)
    assert open_source(folder).dropped.counts == {"caption_missing": 1, "caption_empty": 1}
    with pytest.raises(UserError, match=r"'words'; its columns are: picture, texts, alt"):
        open_source(folder, caption_column="words")


def test_a_class_is_the_caption_where_there_is_no_text(tmp_path):
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "big_dog"])}
    columns = {"img": stored(PNG, PNG, PNG), "label": [1, 0, None]}
    folder = save(tmp_path / "x", columns, features)
    source = open_source(folder)
    assert source.captions(0) == ("a photo of a big dog.",)
    assert source.metadata(0) == {"class": "big_dog"}
    assert source.dropped.counts == {"caption_missing": 1}
    with pytest.raises(UserError, match="caption_template 'a dog'"):
        open_source(folder, caption_template="a dog")


def test_a_view_of_rows_is_kept(tmp_path):
    pictures = dataset({"image": stored(*[PNG] * 5), "caption": list("abcde")}, PICTURES)
    pictures.select([4, 2, 0]).save_to_disk(str(tmp_path / "x"))
    source = open_source(tmp_path / "x")
    assert [source.captions(index)[0] for index in range(3)] == ["e", "c", "a"]


def test_what_cannot_be_read_is_one_line(tmp_path):
    folder = save(tmp_path / "x", {"image": stored(PNG), "caption": [" "]}, PICTURES)
    with pytest.raises(UserError, match=r"no row with a caption.*rows:0: caption is empty"):
        open_source(folder)
    (folder / "state.json").write_text("{broken")
    with pytest.raises(UserError, match=r"save_to_disk wrote") as caught:
        open_source(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="save_to_disk wrote"):
        open_source(tmp_path, format="huggingface")


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    folder = save(tmp_path / "x", {"image": stored(PNG), "caption": ["a"]}, PICTURES)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"pip install 'clip_jax\[datasets\]'"):
        open_source(folder)


def test_classes_without_a_name_are_no_captions(tmp_path):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    columns = {"image": stored(PNG, PNG, PNG), "label": [1, -1, None]}
    source = open_source(save(tmp_path / "x", columns, features))
    assert (len(source), source.captions(0)) == (1, ("a photo of a dog.",))
    assert source.dropped.counts == {"caption_missing": 2}
    assert source.dropped["rows:1"] == "label -1 has no class name"
    assert source.dropped["rows:2"] == "caption is missing"
