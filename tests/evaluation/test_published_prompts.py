"""Published class names and templates: their numbers, their order, and what others have of them."""

import ast
import json
from pathlib import Path

import pytest
from places import REPOSITORY

from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import get_classes, get_templates
from clip_jax.evaluation.prompts.published import published, published_sets

# (classes, templates) of prompts.md and the notebook of github.com/openai/CLIP.
OPENAI = {
    "imagenet1k": (1000, 80),
    "cifar10": (10, 18),
    "cifar100": (100, 18),
    "food101": (101, 1),
    "cars": (196, 8),
    "fgvc_aircraft": (100, 2),
    "pets": (37, 1),
    "flowers": (102, 1),
    "caltech101": (102, 34),
    "sun397": (397, 2),
    "dtd": (47, 8),
    "eurosat": (10, 3),
    "resisc45": (45, 18),
    "mnist": (10, 1),
    "stl10": (10, 2),
    "gtsrb": (43, 3),
    "kitti_closest_vehicle_distance": (4, 1),
    "clevr_count_all": (8, 1),
    "pcam": (2, 1),
    "country211": (211, 5),
    "fer2013": (7, 6),
    "voc2007": (20, 1),
    "renderedsst2": (2, 1),
    "kinetics700": (700, 28),
    "hateful_memes": (2, 1),
    "ucf101": (101, 48),
    "birdsnap": (500, 1),
}
SUBSETS = {"imagenet-a": (200, 80), "imagenet-r": (200, 80), "imagenet-o": (200, 80)}
# A set of ours -> its dataset of TFDS and the file of its labels there.
LABEL_FILES = {
    "imagenet1k": "datasets/imagenet2012/labels.txt",
    "food101": "image_classification/food-101_classes.txt",
    "sun397": "image_classification/sun397_labels.txt",
    "caltech101": "image_classification/caltech101_labels.txt",
    "ucf101": "video/ucf101_labels.txt",
}
LABEL_LISTS = {
    "cars": ("image_classification/cars196.py", "_NAMES"),
    "eurosat": ("image_classification/eurosat.py", "_LABELS"),
    "resisc45": ("datasets/resisc45/resisc45_dataset_builder.py", "_LABELS"),
    "flowers": ("datasets/oxford_flowers102/oxford_flowers102_dataset_builder.py", "_NAMES"),
    "pets": ("datasets/oxford_iiit_pet/oxford_iiit_pet_dataset_builder.py", "_LABEL_CLASSES"),
}


def names_of(name: str) -> list[str]:
    return [each.names[0] for each in get_classes(name) if each.names]


@pytest.mark.parametrize("name", [*OPENAI, *SUBSETS])
def test_as_many_as_published(name: str) -> None:
    evaluated = [each for each in get_classes(name) if each.names]
    assert (len(evaluated), len(get_templates(name))) == (OPENAI | SUBSETS)[name]
    assert len({each.label for each in evaluated}) == len(evaluated)


@pytest.mark.parametrize("name", published_sets())
def test_templates_have_one_place_for_the_name(name: str) -> None:
    assert all(template.count("{}") == 1 for template in get_templates(name))


def test_words_that_are_known() -> None:
    assert names_of("imagenet1k")[:3] == ["tench", "goldfish", "great white shark"]
    assert get_classes("imagenet1k")[0].label == "n01440764"
    # Two pairs of classes share a name in OpenAI's list; labels still tell them apart.
    assert len(set(names_of("imagenet1k"))) == 998
    assert dict(get_classes("fer2013"))["surprise"] == ("surprised", "shocked", "spooked")
    assert dict(get_classes("eurosat"))["SeaLake"] == ("lake or sea",)
    # CLIP's own wording, which clip-benchmark changes.
    assert get_templates("resisc45")[0] == "satellite imagery of {}."
    assert get_templates("clevr_count_all") == ("a photo of {} objects.",)
    assert names_of("clevr_count_all") == ["3", "4", "5", "6", "7", "8", "9", "10"]
    assert get_templates("pcam") == ("this is a photo of {}",)


def test_subsets_of_imagenet_and_objectnet() -> None:
    whole = dict(get_classes("imagenet1k"))
    for name in SUBSETS:
        labels = [each.label for each in get_classes(name)]
        assert labels == sorted(labels)
        assert all(whole[each.label] == each.names for each in get_classes(name))
    objects = get_classes("objectnet")
    assert [bool(each.names) for each in objects] == [True] * 113 + [False] * 200
    folders = [each.label.replace(" ", "_") for each in objects[:113]]
    assert folders == sorted(folders)


def tfds_folder() -> Path:
    tfds = pytest.importorskip("tensorflow_datasets")
    return Path(tfds.__file__).parent


def spelled(text: str) -> str:
    return " ".join(text.replace("_", " ").replace("-", " ").split())


@pytest.mark.parametrize("name", [*LABEL_FILES, *LABEL_LISTS])
def test_labels_are_those_of_tfds(name: str) -> None:
    if name in LABEL_FILES:
        text = (tfds_folder() / LABEL_FILES[name]).read_text("utf-8")
        labels = [line.strip() for line in text.splitlines() if line.strip()]
    else:
        path, variable = LABEL_LISTS[name]
        tree = ast.parse((tfds_folder() / path).read_text("utf-8"))
        values = [x.value for x in tree.body if ast.unparse(x).startswith(f"{variable} =")]
        labels = ast.literal_eval(values[0])
    ours = [each.label for each in get_classes(name)]
    assert {spelled(label) for label in ours} == {spelled(label) for label in labels}
    if name not in ("food101", "ucf101"):  # TFDS sorts these otherwise; its labels are names
        assert list(map(spelled, ours)) == list(map(spelled, labels))


def of_oracle(pattern: str) -> Path:
    found = [*(REPOSITORY / ".oracle").glob(f"lib/python*/site-packages/{pattern}")]
    if not found:
        pytest.skip(f"{pattern} is not in .oracle")
    return found[0]


def test_imagenet_is_as_open_clip_has_it() -> None:
    tree = ast.parse(of_oracle("open_clip/zero_shot_metadata.py").read_text("utf-8"))
    named = {ast.unparse(x.targets[0]): x.value for x in tree.body if isinstance(x, ast.Assign)}
    assert names_of("imagenet1k") == list(ast.literal_eval(named["IMAGENET_CLASSNAMES"]))
    lambdas = [ast.unparse(x.body) for x in named["OPENAI_IMAGENET_TEMPLATES"].elts]  # type: ignore[attr-defined]
    templates = [ast.literal_eval(text[1:]).replace("{c}", "{}") for text in lambdas]
    assert list(get_templates("imagenet1k")) == templates


def test_the_rest_is_as_clip_benchmark_has_it() -> None:
    folder = of_oracle("clip_benchmark/datasets")
    names = json.loads((folder / "en_classnames.json").read_text("utf-8"))
    templates = json.loads(
        (folder / "en_zeroshot_classification_templates.json").read_text("utf-8")
    )
    names["caltech101"] = names.pop("caltech101_vtab")
    compared = 0
    for name in published_sets():
        known = published(name)
        assert known is not None
        if name in names and name not in ("clevr_count_all",):
            theirs = [text.lower() for text in names[name]]
            assert [text.lower() for text in names_of(name)] == theirs, name
            compared += 1
        if name in templates and name not in ("clevr_count_all", "pcam", "resisc45"):
            assert [t.replace("{c}", "{}") for t in templates[name]] == list(get_templates(name))
            compared += 1
    assert compared > 40


def test_a_file_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text('["cat", ["hound", "dog", "puppy"], ["other"]]')
    assert [tuple(each) for each in get_classes(path)] == [
        ("cat", ("cat",)),
        ("hound", ("dog", "puppy")),
        ("other", ()),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", r"classes\.json, class 0: 1; accepted is a text, or a list of texts"),
        ('["cat", []]', r"classes\.json, class 1: \[\]; accepted"),
        ("{}", r"classes\.json: must be a list of classes"),
        ("cat", r"classes\.json is no JSON"),
    ],
)
def test_a_wrong_file_of_classes(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        get_classes(path)
