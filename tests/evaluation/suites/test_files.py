"""Sets in the files that they were published in."""

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_sets import SEEING, evaluated_rows, square
from small_sets import write

from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import get_classes, get_templates
from clip_jax.evaluation.suites.opening import OpenedSet, open_set
from clip_jax.evaluation.suites.sets import all_sets

COLOURS = ("red", "green", "blue")


@pytest.fixture(autouse=True)
def _cache(cache: Path) -> None:
    """Files in the cache are the test's own."""


def opened(name: str, root: Path) -> OpenedSet:
    return open_set(all_sets()[name], str(root), subset=True)


def evaluated(found: OpenedSet) -> dict[str, Any]:
    (row,) = evaluated_rows(SEEING, found)
    return row


def pictures(folder: Path, ending: str = "png") -> None:
    for colour in COLOURS:
        write(folder / f"{colour}.{ending}", square(colour))


def test_sugar_crepe(tmp_path: Path) -> None:
    folder = tmp_path / "sugar_crepe"
    pictures(folder / "val2017")
    rows = {
        "0": {"filename": "red.png", "caption": "a red one", "negative_caption": "a blue one"},
        "7": {"filename": "blue.png", "caption": "a blue one", "negative_caption": "a red one"},
        "9": {"filename": "red.png", "caption": "a green one", "negative_caption": "a red one"},
    }
    write(folder / "swap_att.json", json.dumps(rows))
    found = opened("sugar_crepe/swap_att", tmp_path)
    row = evaluated(found)
    assert row["text_accuracy"] == pytest.approx(2 / 3)  # the last pair is the wrong way round
    assert (row["num_samples"], row["dataset"]) == (3, "sugar_crepe/swap_att")
    with pytest.raises(UserError, match=r"swap_att: 3 problems in .*expected 666"):
        open_set(all_sets()["sugar_crepe/swap_att"], str(tmp_path))


def test_karpathys_splits(tmp_path: Path) -> None:
    pictures(tmp_path / "mscoco_captions" / "val2014")
    images = [{"id": n, "file_name": f"{c}.png"} for n, c in enumerate(COLOURS)]
    notes = [{"image_id": n, "caption": f"{c}, {x}"} for x in "ab" for n, c in enumerate(COLOURS)]
    text = json.dumps({"images": images, "annotations": notes})
    write(tmp_path / "mscoco_captions" / "coco_test_karpathy.json", text)
    found = opened("mscoco_captions", tmp_path)
    assert [found.source.captions(n) for n in (0, 2)] == [
        ("red, a", "red, b"),
        ("blue, a", "blue, b"),
    ]
    assert evaluated(found)["text_to_image_recall_at_1"] == 1.0

    pictures(tmp_path / "flickr30k", "jpg")
    lines = ["image,caption", "red.jpg,A red, or so", "blue.jpg,blue", "red.jpg,red. "]
    write(tmp_path / "flickr30k" / "flickr30k_test_karpathy.txt", "\n".join(lines))
    found = opened("flickr30k", tmp_path)
    assert found.source.captions(0) == ("A red, or so", "red.")
    assert len(found.source) == 2


def test_crossmodal_and_xtd(tmp_path: Path) -> None:
    pictures(tmp_path / "crossmodal3600" / "images", "jpg")
    rows = [
        {"image/key": "red", "de": {"caption": ["rot", "rote Fläche"]}, "en": {"caption": ["red"]}},
        {"image/key": "blue", "de": {"caption": ["blau"]}, "en": {"caption": ["blue"]}},
    ]
    write(tmp_path / "crossmodal3600" / "captions.jsonl", "\n".join(map(json.dumps, rows)))
    assert opened("crossmodal3600/de", tmp_path).source.captions(0) == ("rot", "rote Fläche")
    assert opened("crossmodal3600/en", tmp_path).source.captions(1) == ("blue",)

    pictures(tmp_path / "xtd10" / "images")
    write(tmp_path / "xtd10" / "test_image_names.txt", "green.png\nred.png\n")
    write(tmp_path / "xtd10" / "test_1kcaptions_de.txt", "grün\nrot\n")
    assert opened("xtd10/de", tmp_path).source.captions(0) == ("grün",)
    write(tmp_path / "xtd10" / "test_1kcaptions_de.txt", "grün\n")
    with pytest.raises(UserError, match=r"xtd10: is not test_image_names\.txt.*zip\(\)"):
        opened("xtd10/de", tmp_path)


def test_files_of_another_form(tmp_path: Path) -> None:
    write(tmp_path / "sugar_crepe" / "add_obj.json", '{"0": {"caption": "x"}}')
    with pytest.raises(UserError, match=r"is not SugarCrepe's add_att.json.*KeyError: 'filename'"):
        opened("sugar_crepe/add_obj", tmp_path)
    write(tmp_path / "sugar_crepe" / "add_obj.json", "{")
    with pytest.raises(UserError, match="is not SugarCrepe's"):
        opened("sugar_crepe/add_obj", tmp_path)


def test_imagenet_in_another_language(tmp_path: Path) -> None:
    names = {"DE": [[0, 2], ["Schleie", "Weißer Hai"]]}
    write(tmp_path / "babel_imagenet" / "babel_imagenet.json", json.dumps(names))
    templates = json.dumps({"DE": ["ein Foto von  {} ."]})
    write(tmp_path / "babel_imagenet" / "nllb_dist13b_prompts.json", templates)
    for wnid in ("n01440764", "n01443537", "n01484850"):  # 0, 1, 2
        write(tmp_path / "imagenet1k" / "val" / wnid / "0.png", square("red"))
    with pytest.raises(UserError, match=r"babel_imagenet/de: 2 classes in .*expected 738"):
        opened("babel_imagenet/de", tmp_path)
    from clip_jax.evaluation.suites.finding import find_data

    data = find_data(all_sets()["babel_imagenet/de"], str(tmp_path))
    assert get_templates(data.templates) == ("ein Foto von  {} .",)
    classes = get_classes(data.classnames or "")
    assert [each.names for each in classes[:4]] == [("Schleie",), (), ("Weißer Hai",), ()]
    assert len(classes) == 1000


def test_winoground(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    images = [{"bytes": square(c), "path": None} for c in (*COLOURS, "red")]
    columns = {
        "image_0": images[:2],
        "image_1": images[2:],
        "caption_0": ["red", "red"],
        "caption_1": ["blue", "green"],  # of the second row the wrong way round
    }
    made = datasets.Dataset.from_dict(columns)
    for name in ("image_0", "image_1"):
        made = made.cast_column(name, datasets.Image())
    made.save_to_disk(str(tmp_path / "winoground"))
    row = evaluated(opened("winoground", tmp_path))
    assert (row["text_accuracy"], row["image_accuracy"], row["accuracy"]) == (0.5, 0.5, 0.5)
    with pytest.raises(UserError, match=r"winoground: 2 problems in .*expected 400"):
        open_set(all_sets()["winoground"], str(tmp_path))


def test_winogavil(tmp_path: Path) -> None:
    folder = tmp_path / "winogavil"
    pictures(folder / "images")
    rows = ["cue,candidates,associations"]
    names = '"[""red"", ""green"", ""blue""]"'
    rows += [f'red,{names},"[""red""]"', f"blue,{names},\"['blue', 'red']\""]
    write(folder / "winogavil_test.csv", "\n".join(rows))
    row = evaluated(opened("winogavil", tmp_path))
    # To blue, red and green are equally near, and red comes first.
    assert row["jaccard"] == 1.0
    assert (row["num_images"], row["num_samples"]) == (3, 2)
    with pytest.raises(UserError, match=r"winogavil: 2 problems in .*expected 3,563"):
        open_set(all_sets()["winogavil"], str(tmp_path))
    (folder / "images" / "green.png").unlink()
    with pytest.raises(UserError, match="no usable image of the candidate 'green'"):
        evaluated(opened("winogavil", tmp_path))
