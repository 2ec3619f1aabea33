"""Datasets that TFDS wrote, without TensorFlow."""

import json
import subprocess
import sys

import pytest
from small_sets import SAMPLES, write_tfds

from clip_jax.data.sources import detect_format, open_source
from clip_jax.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record")


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    return write_tfds(tmp_path_factory.mktemp("tfds"))


def test_splits(small_set):
    assert detect_format(str(small_set)) == "tfds"
    assert len(open_source(small_set)) == 10
    source = open_source(small_set, split="train[20%:50%]+test")
    expected = [*SAMPLES[2:5], *SAMPLES[:4]]
    assert [source.key(index) for index in range(7)] == [sample.key for sample in expected]
    assert source[1].image == SAMPLES[3].image
    assert source.fingerprint != open_source(small_set).fingerprint
    assert (len(open_source(small_set, split="Testing")), source.split) == (
        4,
        "train[20%:50%]+test",
    )
    with pytest.raises(UserError, match=r"no split 'val'.*it has test, train"):
        open_source(small_set, split="val")


def test_features(small_set):
    source = open_source(small_set)
    assert source.captions(1) == SAMPLES[1].captions
    assert source.metadata(1) == {"label": "dog"}
    options = {"caption_column": "label,captions/text", "caption_weights": (1.0, 3.0)}
    source = open_source(small_set, caption_template="this is a {}", **options)
    assert source[1].captions == ("this is a dog", *SAMPLES[1].captions)
    assert source[1].weights == (1.0, 1.5, 1.5)
    assert source.metadata(1) == {"class": "dog"}
    with pytest.raises(UserError, match=r"'label' is no image of 8 bits; those are: image"):
        open_source(small_set, image_column="label")
    with pytest.raises(UserError, match="caption_template 'a dog'"):
        open_source(small_set, caption_column="label", caption_template="a dog")


def test_a_class_is_the_caption_where_there_is_no_text(small_set, tmp_path):
    folder = tmp_path / "labels" / "1.0.0"
    folder.mkdir(parents=True)
    for file in small_set.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    features = json.loads((folder / "features.json").read_text())
    del features["featuresDict"]["features"]["captions"]
    (folder / "features.json").write_text(json.dumps(features))
    source = open_source(folder)
    assert source.captions(1) == ("a photo of a dog.",)


def test_folders_above_and_names(small_set, monkeypatch):
    assert len(open_source(small_set.parent, format="tfds")) == 10
    files = tfds.core.utils.file_utils
    monkeypatch.setattr(files, "list_data_dirs", lambda *_, **__: [small_set.parent.parent])
    assert len(open_source("small_set", format="tfds", split="test")) == 4
    assert len(open_source("small_set:1.0.0", format="tfds")) == 10


def test_what_is_not_there_says_what_to_do(small_set, tmp_path):
    with pytest.raises(UserError, match=r"not prepared here.*--file_format=array_record") as caught:
        open_source("no_such_set", format="tfds")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"no dataset_info\.json of TFDS"):
        open_source(tmp_path, format="tfds")
    folder = tmp_path / "records" / "1.0.0"
    folder.mkdir(parents=True)
    info = json.loads((small_set / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_bytes((small_set / "features.json").read_bytes())
    with pytest.raises(UserError, match=r"tfrecord format.*tfds convert_format"):
        open_source(folder)
    (folder / "dataset_info.json").write_text("{broken")
    with pytest.raises(UserError, match="is no dataset of TFDS"):
        open_source(folder)


def test_a_shard_that_vanished_is_one_line(small_set, tmp_path):
    folder = tmp_path / "small_set" / "1.0.0"
    folder.mkdir(parents=True)
    for file in small_set.iterdir():
        if "train" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"has no record.*small_set-train\.array_record"):
        open_source(folder)


def test_no_tensorflow_is_loaded(small_set):
    program = (
        "import sys; from clip_jax.data.sources import open_source;"
        f"assert len(open_source({str(small_set)!r}, split='train')[0].image) > 0;"
        "assert 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_without_the_package_the_extra_is_named(small_set, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"pip install 'clip_jax\[tfds\]'"):
        open_source(small_set)
