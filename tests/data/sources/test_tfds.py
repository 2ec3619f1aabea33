"""Datasets that TFDS wrote, without TensorFlow: splits, features, folders and names."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_sets import ROWS, keys, refused, write_tfds

from clip_jax.data.sources import open_source

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")


@pytest.fixture(scope="module")
def small_set(tmp_path_factory) -> Path:
    return write_tfds(tmp_path_factory.mktemp("tfds"))


def test_splits(small_set: Path) -> None:
    source = open_source(small_set, split="train[20%:50%]+test")
    assert keys(source) == ["002", "003", "004", "000", "001", "002", "003"]
    assert source[1].image == ROWS[3]["image"]
    assert source.fingerprint != open_source(small_set).fingerprint
    assert source.split == "train[20%:50%]+test"
    assert len(open_source(small_set, split="Testing")) == 4
    refused(r"no split 'val'.*it has test, train", small_set, split="val")


def test_features(small_set: Path) -> None:
    captions = tuple(ROWS[1]["captions"])
    options = {"caption_column": "label,captions/text", "caption_weights": (1.0, 3.0)}
    source = open_source(small_set, caption_template="this is a {}", **options)
    assert source[1].captions == ("this is a dog", *captions)
    assert source[1].weights == (1.0, 1.5, 1.5)
    assert source.metadata(1) == {"class": "dog"}
    refused(r"'label' is no image of 8 bits; those are: image", small_set, image_column="label")
    refused("caption_template 'a dog'", small_set, caption_column="label", caption_template="a dog")


def test_a_class_is_the_caption_where_there_is_no_text(small_set: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels" / "1.0.0"
    shutil.copytree(small_set, folder)
    features = json.loads((folder / "features.json").read_text())
    del features["featuresDict"]["features"]["captions"]
    (folder / "features.json").write_text(json.dumps(features))
    source = open_source(folder)
    assert source.captions(1) == ("a photo of a dog.",)
    assert source.metadata(1)["class"] == "dog"


def test_folders_above_and_names(small_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(open_source(small_set.parent, format="tfds")) == 10
    files = tfds.core.utils.file_utils
    monkeypatch.setattr(files, "list_data_dirs", lambda *_, **__: [small_set.parent.parent])
    assert len(open_source("small_set", format="tfds", split="test")) == 4
    assert len(open_source("small_set:1.0.0", format="tfds")) == 10


def test_what_is_not_there_says_what_to_do(small_set: Path, tmp_path: Path) -> None:
    refused(r"not prepared here.*--file_format=array_record", "no_such_set", format="tfds")
    folder = tmp_path / "small_set" / "1.0.0"
    shutil.copytree(small_set, folder, ignore=shutil.ignore_patterns("*train*"))
    refused(r"has no record.*small_set-train\.array_record", folder)
    info = json.loads((small_set / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    refused(r"tfrecord format.*tfds convert_format", folder)
    (folder / "dataset_info.json").write_text("{broken")
    refused("is no dataset of TFDS", folder)


def test_no_tensorflow_is_loaded(small_set: Path) -> None:
    program = (
        "import sys; from clip_jax.data.sources import open_source;"
        f"assert len(open_source({str(small_set)!r}, split='train')[0].image) > 0;"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
