"""The table of sets: members and sizes of suites, names, and a user's own file."""

from pathlib import Path

import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import get_classes
from clip_jax.evaluation.prompts.published import published
from clip_jax.evaluation.suites.files import FORMS
from clip_jax.evaluation.suites.sets import all_sets, all_suites, read_sets, resolve_suite

SIZES = {
    "clip27": 27,
    "vtab": 19,
    "vtab+": 36,
    "retrieval": 3,
    "imagenet_robustness": 7,
    "sugar_crepe": 7,
    "compositional": 9,
    "datacomp": 38,
    "fairness": 3,
    "crossmodal3600": 36,
    "xtd10": 11,
}
# Sets whose names of classes come with their data.
NAMED_BY_DATA = (
    "dsprites",
    "smallnorb",
    "iwildcam",
    "camelyon17",
    "fmow",
    "dollar_street",
    "geode",
)


def test_suites_have_their_published_sizes() -> None:
    assert {name: len(all_suites()[name]) for name in SIZES} == SIZES
    for name, members in all_suites().items():
        assert len(set(members)) == len(members), name
        assert set(members) <= set(all_sets()), name
    assert set(all_suites()["vtab"]) <= set(all_suites()["vtab+"])


@pytest.mark.parametrize("name", sorted(all_sets()))
def test_each_row_fits_its_prompts(name: str) -> None:
    row = all_sets()[name]
    if row.files == "babel":
        assert row.samples == (50 * (row.classes or 0),)
        return
    assert row.files is None or row.files in FORMS
    if row.kind not in ("zero_shot", "multilabel"):
        assert row.classes is None
        return
    known = published(row.prompts or row.name)
    if name.startswith(NAMED_BY_DATA):
        assert known is None or not known.classes
        return
    evaluated = [each for each in get_classes(row.prompts or row.name) if each.names]
    assert row.classes == len(evaluated)


def test_known_sizes_and_figures() -> None:
    sets = all_sets()
    assert sets["imagenetv2"].open_clip == (55.92, 69.83)
    assert sets["mscoco_captions"].texts == (25010,)
    assert sets["country211"].samples == (211 * 100,)
    assert sum(sets[name].samples[0] for name in all_suites()["sugar_crepe"]) == 7511
    per_class = {name for name, row in sets.items() if row.metric == "mean_per_class_accuracy"}
    assert per_class == {"caltech101", "fgvc_aircraft", "flowers", "pets"}


def test_lists_of_names() -> None:
    def names(text: str) -> list[str]:
        return [each.name for each in resolve_suite(text)]

    assert names("dtd, vtab/dtd,mnist") == ["dtd", "mnist"]
    assert names("retrieval,flickr8k") == ["mscoco_captions", "flickr8k", "flickr30k"]
    assert names("xtd10/de") == ["xtd10/de"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vtba", r"^--suite=vtba: no such suite, set or \.toml file; did you mean 'vtab'\?$"),
        ("dtd,imagenet1", "did you mean 'imagenet1k'"),
        ("qqqqqq", "suites are clip27, vtab"),
        (" , ", "names nothing"),
    ],
)
def test_unknown_names(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_suite(text)


OWN = """
[suites]
all = ["shop", "imagenet1k"]
[sets.shop]
path = "photos"
classnames = "names.txt"
metric = "mean_per_class_accuracy"
classes = 2
samples = [3]
[sets.tars]
path = "gs://mine/{0..3}.tar"
kind = "retrieval"
split = "validation"
"""


def test_a_users_own_file(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("a\nb\n")
    path = tmp_path / "mine.toml"
    path.write_text(OWN)
    shop, tars, mnist = resolve_suite(f"{path},mnist")
    assert (shop.name, shop.metric, shop.samples) == ("shop", "mean_per_class_accuracy", (3,))
    assert shop.data.path == str(tmp_path / "photos")
    assert shop.data.classnames == str(tmp_path / "names.txt")
    assert shop.data.templates == "openai"
    assert (tars.data.path, tars.split, mnist.name) == (
        "gs://mine/{0..3}.tar",
        "validation",
        "mnist",
    )
    assert [each.name for each in resolve_suite(f"{path},all")] == ["shop", "tars", "imagenet1k"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[sets.a]\npath = 'x'\nmetrik = 'y'",
            r"unknown key 'mine\.toml: sets\.a\.metrik'; did you",
        ),
        ("[sets.a]\npath = 'x'\nkind = 'zeroshot'", r"sets\.a\.kind='zeroshot': choose one of"),
        ("[sets.a]\npath = 'x'\nclasses = 0", r"sets\.a\.classes=0: must be"),
        ("[sets.a]\npath = 'x'\nlabels = 'text'", r"sets\.a\.labels='text': choose one of 'auto'"),
        ("[sets.a]\nmetric = 'y'", r"sets\.a has no path"),
        (
            "[shop]\npath = 'x'",
            r"^mine\.toml: unknown key 'shop'; .* such as \[sets\.shop\] with a",
        ),
        ("path = 'x'", r"^mine\.toml: unknown key 'path'; .* such as \[sets\.shop\] with a path"),
        ("sets = 3", "has no set"),
        ("[sets.a", "is no TOML"),
        ("[sets.a]\npath = 'x'\n[suites]\nb = 'a'", "must be lists of names"),
    ],
)
def test_a_wrong_file(text: str, message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_sets("mine.toml")
    assert "\n" not in str(caught.value)


def test_a_suite_with_a_member_that_is_no_set(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[sets.a]\npath = 'x'\n[suites]\nall = ['a', 'b']")
    with pytest.raises(UserError, match="suite all: has no set 'b'"):
        resolve_suite(f"{path},all")
    with pytest.raises(UserError, match="cannot be read"):
        resolve_suite(str(tmp_path / "absent.toml"))
