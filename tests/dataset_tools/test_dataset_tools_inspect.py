"""The page of `inspect` holds the right numbers, for good data, for broken data, and in parts."""

import html
import json
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from dataset_tools_runs import Capture, make_pairs, make_shards, run
from pages import is_self_contained, pictures, sections, tiles, words
from pictures import encode, photo
from places import REPOSITORY

from clip_jax.dataset_tools import program
from clip_jax.dataset_tools.data_flags import run_config
from clip_jax.dataset_tools.inspect.duplicates import (
    MAX_DISTANCE,
    near_numbers,
)
from clip_jax.dataset_tools.inspect.throughput import DECODE, READ, TOKENISE
from clip_jax.dataset_tools.token_lengths import token_lengths
from clip_jax.dataset_tools.workers import evenly
from clip_jax.errors import UserError
from clip_jax.text.tokenizer import load_tokenizer, save_tokenizer, train_sentencepiece
from clip_jax.training.config import build_config, default_config, to_dict

HOSTILE = "<script>alert('x')</script> & more"
OWN_IMAGES = f"--config={REPOSITORY / 'configs' / 'own_images.py'}"


def inspected(capsys: Capture, output: Path, *arguments: object, **flags: object) -> str:
    """The page that `inspect` writes."""
    ended = run(capsys, "inspect", *arguments, output=output, workers=0, **flags)
    assert ended.code == 0, ended.err
    return output.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    captions = [f"a photo number {n} of many colours, {HOSTILE}" for n in range(30)]
    save_tokenizer(train_sentencepiece(captions, 330, context_length=24), folder)
    return folder


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One archive: a photo, its copy, nearly the same, another, a broken one, one without text."""
    first = photo(90, 60, seed=1)
    jpeg = encode(first, "JPEG", quality=95)
    pairs = {
        "a": (jpeg, b"a photo number 1"),
        "b": (jpeg, b"a photo number  1"),
        "c": (encode(first.resize((180, 120)), "JPEG", quality=70), b"a photo number 3 " * 20),
        "d": (encode(photo(50, 70, seed=9), "PNG"), HOSTILE.encode()),
        "e": (jpeg[:-300], b"cut off"),
        "f": (jpeg, b"  "),
    }
    return make_pairs(tmp_path_factory.mktemp("troubled") / "00000.tar", pairs)


@pytest.fixture(scope="module")
def page(troubled: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("page") / "page.html"
    flags = {
        "data": troubled,
        "output": output,
        "workers": 0,
        "config.tokenizer.source": tokenizer,
        "config.model.image_size": 48,
        "config.model.vision.patch_size": 16,
        "config.model.context_length": 24,
    }
    with pytest.raises(SystemExit) as ended:
        program.run(["data", "inspect", *(f"--{key}={flags[key]}" for key in flags)], "")
    assert ended.value.code == 0
    return output.read_text(encoding="utf-8")


def test_the_numbers(page: str, tokenizer: Path) -> None:
    texts = ["a photo number 1", "a photo number  1", "a photo number 3 " * 20, HOSTILE]
    over = token_lengths(load_tokenizer(tokenizer), texts) > 24
    for label, figure in {
        "samples with a caption": "5",
        "samples that cannot be used": "2",
        "captions looked at": "4",
        "exact duplicates": "1",
        "groups of near duplicates": "1",
        "over 24 tokens": f"{100 * over.mean():.1f} %",
    }.items():
        assert tiles(page)[label] == figure, label
    assert "All 5 samples were looked at." in words(page)
    parts = {title: words(body) for title, body in sections(page).items()}
    for title, said in (
        ("Data", r"3 JPEG, 1 PNG"),
        ("Data", r"context length 24 tokens"),
        ("What cannot be used", r"caption_empty 1 0"),
        ("What cannot be used", r"image_undecodable 0 1"),
        ("What cannot be used", r"e image_undecodable \S*00000\.tar:\d+ image file is truncated"),
        ("What cannot be used", r"f caption_empty"),
        ("Exact duplicates", r"Images with equal bytes: 2 of 4, in 1 group\."),
        ("Near duplicates", r"2 of 4, in 1 group\."),
        ("Near duplicates", r"2 images, the closest \d of 64 bits apart"),
        ("Repeated captions", r"2 of 4 captions \(50\.0 %\) are shared by several samples"),
        ("Sizes and lengths", r"median 90, 90 % between 50 and 180; from 50 to 180 pixels"),
    ):
        assert re.search(said, parts[title]), said


def test_samples_as_the_model_sees_them(page: str) -> None:
    body = sections(page)["Samples as the model sees them"]
    assert body.count('class="card guess sample"') == 4
    shown = words(body)
    assert "tokens of 24" in shown
    assert body.count("✂ cut") == len(re.findall(r"cut: [\d,]+(?: or more)? tokens of 24", shown))
    assert [image.size for image in pictures(body)] == [(48, 48)] * 4


def test_throughput_names_the_bottleneck(page: str) -> None:
    body = words(sections(page)["Throughput"])
    rates = [
        float(re.search(rf"{name} ([\d,]+) [\d.]+ %", body)[1].replace(",", ""))
        for name in (READ, DECODE, TOKENISE, "one after the other")
    ]
    slowest = (READ, DECODE, TOKENISE)[int(np.argmin(rates[:3]))]
    assert f"The bottleneck is “{slowest}”" in body
    assert tiles(page)["bottleneck"] == slowest
    assert tiles(page)["images/s a core"] == f"{rates[3]:,.0f}"
    assert sum(1 / rate for rate in rates[:3]) == pytest.approx(1 / rates[3], rel=0.05)


def test_the_page_is_safe_and_whole(page: str) -> None:
    assert is_self_contained(page)
    assert HOSTILE in html.unescape(page)
    assert len(pictures(page)) >= 12 + 4


def test_samples_are_shown_as_the_config_trains_on_them(tmp_path: Path, capsys: Capture) -> None:
    data = make_shards(tmp_path / "in", samples=8, side=80)
    page = inspected(
        capsys, tmp_path / "page.html", OWN_IMAGES, f"--config.data.path={data}",
        "--config.model.context_length=8", "--config.augmentation.grayscale_probability", "0.5",
        samples=4,
    )  # fmt: skip
    shown = words(page)
    assert "context length 8 tokens" in shown
    assert "image size 64 pixels" in shown
    assert "crop 0.4–1 of the area, bicubic" in shown
    assert "flip_probability=0.5, grayscale_probability=0.5" in shown
    assert "configs/own_images.py --config.data.path=" in shown, "it says whose eyes these are"
    body = sections(page)["Samples as the model sees them"]
    assert [image.size for image in pictures(body)] == [(64, 64)] * 4
    captions = [f"a photo number {n} of many colours" for n in (*range(0, 8, 2), *range(1, 8, 2))]
    trained = train_sentencepiece(captions, 2000, context_length=8)
    assert f"vocabulary {trained.vocab_size} ids" in shown
    over = (token_lengths(trained, captions) > 8).mean()
    assert f"{100 * over:.1f} % over 8 tokens" in shown
    assert f"config.data.path {data}" in words(
        inspected(capsys, tmp_path / "page.html", OWN_IMAGES, data=data, samples=1)
    ), "--data is the same"


def test_mixtures_rules_and_cleaned_captions(tmp_path: Path, capsys: Capture) -> None:
    first = make_shards(tmp_path / "a", samples=5)
    second = make_shards(tmp_path / "b", samples=4, side=20)
    mixed = (
        f"--config.data.mixture=({{'path': {str(first)!r}, 'weight': 3.0}}, "
        f"{{'path': {str(second)!r}}})",
        "--config.data.filters.min_side=30",
        "--config.data.captions.clean=True",
    )
    shown = words(inspected(capsys, tmp_path / "page.html", *mixed))
    assert "9 samples with a caption" in shown
    assert "image_filtered 0 4" in shown
    assert "config.data.captions.clean True" in shown
    assert re.search(r"b/00001\.tar:\d+", shown)
    out = tmp_path / "out"
    ended = run(capsys, "convert", *mixed, output=out, workers=0)
    assert ended.code == 0, ended.err
    record = json.loads((out / "convert.json").read_text())
    assert (record["samples"], record["left_out"]) == (5, {"image_filtered": 4})
    assert record["source"]["data.filters.min_side"] == 30
    ended = run(capsys, "tokenizer", *mixed, vocab_size=300, output=tmp_path / "tokenizer")
    assert "from 9 captions" in ended.out


def test_the_configuration_of_a_run(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(UserError, match="is no run"):
        run_config(tmp_path)
    values = default_config()
    values.data.path, values.steps = str(make_shards(tmp_path / "in", samples=5)), 10
    values.data.filters.min_side, values.data.streaming = 50, True
    config = build_config(values)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    assert run_config(tmp_path) == config
    assert (
        "5 samples: 0 good, 5 bad (5 image_filtered)"
        in run(capsys, "verify", config=tmp_path, workers=0).out
    ), "what streams in training is read by numbers here"
    other = make_shards(tmp_path / "other", samples=3, side=60)
    ended = run(capsys, "verify", config=tmp_path, data=other, workers=0)
    assert "3 samples: 3 good, 0 bad" in ended.out, "by the same rules"
    (tmp_path / "config.json").write_text('{"data": {}, "augmentation": {"flip": 1}}')
    with pytest.raises(UserError, match=r"config\.json: unknown key 'config\.augmentation\.flip'"):
        run_config(tmp_path)


@pytest.mark.slow
def test_a_run_is_shown_with_its_own_settings(
    tiny_run: Path, tmp_path: Path, capsys: Capture
) -> None:
    config = json.loads((tiny_run / "config.json").read_text())
    low, high = config["augmentation"]["crop_scale"]
    own = words(inspected(capsys, tmp_path / "own.html", config=tiny_run, samples=4))
    assert f"configuration {tiny_run}" in own
    assert f"crop {low:g}–{high:g} of the area" in own
    assert f"tokenizer of {tiny_run}" in own


def test_large_sets_are_looked_at_in_parts(tmp_path: Path, capsys: Capture) -> None:
    data = make_shards(tmp_path / "in", samples=40, side=16)
    page = inspected(
        capsys, tmp_path / "page.html", "--config.model.context_length=6", data=data, limit=10,
        samples=3,
    )  # fmt: skip
    assert "Looked at were 10 of the 40 samples, at equal distances" in words(page)
    assert page.count('class="card guess sample"') == 3
    assert tiles(page)["over 6 tokens"] == "100.0 %"
    assert "SentencePiece, trained on all captions, as the trainer does" in words(page)
    assert evenly(40, 10) == list(range(0, 40, 4))
    assert evenly(3, 10) == [0, 1, 2]


def test_examples_of_each_kind(tmp_path: Path, tokenizer: Path, capsys: Capture) -> None:
    """Rare findings are shown too, though they come after many common ones."""
    jpeg = encode(photo(20, 20), "JPEG")
    empty = {f"empty{number:02d}": (jpeg, b" ") for number in range(30)}
    same = {f"same{number:02d}": (jpeg, b"good") for number in range(30)}
    pairs = {**same, **empty, "late": (jpeg, b"\xff\xfe\xff")}
    page = inspected(capsys, tmp_path / "page.html", data=make_pairs(tmp_path / "in.tar", pairs))
    unusable = words(sections(page)["What cannot be used"])
    assert "late caption_not_utf8" in unusable
    assert len(re.findall(r"empty\d\d caption_empty", unusable)) == 3
    assert re.search(r"30 images \(\d\d not shown\)", words(page))


def test_near_groups_are_those_of_all_pairs() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 300, np.uint64)
    hashes[200:] = hashes[:100]
    for row in range(200, 300):
        for bit in rng.choice(63, row % 8, replace=False):
            hashes[row] ^= np.uint64(1 << int(bit))
    listed = hashes.tolist()
    expected = []
    taken: set[int] = set()
    for i in range(300):
        others = {
            j: bits
            for j in range(i + 1, 300)
            if j not in taken and (bits := (listed[i] ^ listed[j]).bit_count()) <= MAX_DISTANCE
        }
        if i not in taken and others:
            taken.update(others)
            expected.append(([i, *others], min(others.values())))
    assert list(near_numbers(listed)) == expected
    assert len(expected) >= 60


def test_many_equal_images_need_little_memory() -> None:
    """All pairs of 5,000 took 2 GiB."""
    hashes = [7] * 5000 + [(1 << 64) - 1]
    tracemalloc.start()
    groups = list(near_numbers(hashes))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert groups == [(list(range(5000)), 0)]
    assert peak < 4 << 20
