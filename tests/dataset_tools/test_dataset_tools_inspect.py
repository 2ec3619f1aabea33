"""The page of `inspect` holds the right numbers, for good data, for broken data, and in parts."""

import base64
import html
import io
import itertools
import re
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from dataset_tools_runs import make_shards, make_tar, mistake, run
from pictures import encode, photo
from PIL import Image

from clip_jax.data.sources import open_source
from clip_jax.dataset_tools import program
from clip_jax.dataset_tools.inspect import throughput
from clip_jax.dataset_tools.inspect.as_trained import AsTrained
from clip_jax.dataset_tools.inspect.duplicates import (
    MAX_DISTANCE,
    exact_groups,
    near_groups,
    near_numbers,
    repeated_captions,
)
from clip_jax.dataset_tools.inspect.histograms import Histogram, draw_histogram
from clip_jax.dataset_tools.inspect.survey import Facts, evenly
from clip_jax.dataset_tools.inspect.throughput import (
    DECODE,
    READ,
    TOKENISE,
    Spent,
    Throughput,
    chip_rates,
    measure,
)
from clip_jax.dataset_tools.inspect.token_lengths import token_lengths
from clip_jax.report.charts import LIGHT
from clip_jax.text.tokenizer import load_tokenizer, save_tokenizer, train_sentencepiece

HOSTILE = "<script>alert('x')</script> & more"


def words(part: str) -> str:
    """The text of a piece of HTML."""
    return html.unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", part)))


def sections(page: str) -> dict[str, str]:
    """Title -> HTML of each section."""
    found = re.findall(r"<section>\n<h2>(.*?)</h2>(.*?)</section>", page, re.DOTALL)
    return {html.unescape(title): body for title, body in found}


def tiles(page: str) -> dict[str, str]:
    """What it is -> value."""
    found = re.findall(r'class="card tile"><b>(.*?)</b><span>(.*?)</span>', page)
    return {label: value for value, label in found}


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
    images = {
        "a": (jpeg, "a photo number 1"),
        "b": (jpeg, "a photo number  1"),
        "c": (encode(first.resize((180, 120)), "JPEG", quality=70), "a photo number 3 " * 20),
        "d": (encode(photo(50, 70, seed=9), "PNG"), HOSTILE),
        "e": (jpeg[:-300], "cut off"),
        "f": (jpeg, "  "),
    }
    path = tmp_path_factory.mktemp("troubled") / "00000.tar"
    members = [
        (f"{key}.{ending}", data)
        for key, (image, text) in images.items()
        for ending, data in (("jpg", image), ("txt", text.encode()))
    ]
    make_tar(path, members)
    return path


@pytest.fixture(scope="module")
def page(troubled: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    output = tmp_path_factory.mktemp("page") / "page.html"
    flags = (f"--data={troubled}", f"--output={output}", f"--tokenizer={tokenizer}")
    with pytest.raises(SystemExit) as ended:
        program.run(["data", "inspect", *flags, "--image_size=48", "--workers=0"], "")
    assert ended.value.code == 0
    return output.read_text(encoding="utf-8")


def test_the_numbers(page: str, tokenizer: Path) -> None:
    found = tiles(page)
    assert found["samples with a caption"] == "5"
    assert found["samples that cannot be used"] == "2"
    assert found["captions looked at"] == "4"
    assert found["exact duplicates"] == "1"
    assert found["groups of near duplicates"] == "1"
    texts = ["a photo number 1", "a photo number  1", "a photo number 3 " * 20, HOSTILE]
    over = token_lengths(load_tokenizer(tokenizer), texts) > 24
    assert found["over 24 tokens"] == f"{100 * over.mean():.1f} %"
    assert "All 5 samples were looked at." in words(page)
    parts = {title: words(body) for title, body in sections(page).items()}
    assert "3 JPEG, 1 PNG" in parts["Data"]
    assert "24 tokens" in parts["Data"]
    unusable = parts["What cannot be used"]
    assert "caption_empty 1 0" in unusable
    assert "image_undecodable 0 1" in unusable
    assert re.search(r"e image_undecodable \S*00000\.tar:\d+ image file is truncated", unusable)
    assert "f caption_empty" in unusable
    assert "Images with equal bytes: 2 of 4, in 1 group;" in parts["Exact duplicates"]
    assert "2 of 4, in 1 group;" in parts["Near duplicates"]
    assert "2 of 4 captions (50.0 %) are shared by several samples" in parts["Repeated captions"]
    widths = parts["Sizes and lengths"]
    assert "median 90, 90 % between 50 and 180; from 50 to 180 pixels" in widths


def test_samples_as_the_model_sees_them(page: str) -> None:
    body = sections(page)["Samples as the model sees them"]
    assert body.count('class="card guess"') == 4
    shown = words(body)
    assert "tokens of 24" in shown
    assert body.count("✂ cut") == len(re.findall(r"cut: [\d,]+(?: or more)? tokens of 24", shown))
    for data in re.findall(r'src="data:image/png;base64,([^"]+)"', body):
        assert Image.open(io.BytesIO(base64.b64decode(data))).size == (48, 48)


def test_throughput_names_the_bottleneck(page: str) -> None:
    body = words(sections(page)["Throughput"])
    rates = {
        name: float(re.search(rf"{name}(?: ← bottleneck)? ([\d,]+)", body)[1].replace(",", ""))
        for name in ("read", "decode and crop", "tokenise")
    }
    slowest = min(rates, key=lambda name: rates[name])
    assert f"The bottleneck is “{slowest}”" in body
    assert f"{slowest} ← bottleneck" in body
    assert tiles(page)["bottleneck"] == slowest
    whole = float(tiles(page)["images/s a core"].replace(",", ""))
    assert sum(1 / rate for rate in rates.values()) == pytest.approx(1 / whole, rel=0.05)
    assert re.search(r"one after the other [\d,]+ 100\.0 % \d+ %", body)
    assert "assumed 50 % of its peak" in body
    assert all(name in body for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14"))


def test_the_page_is_safe_and_whole(page: str) -> None:
    assert "<script" not in page
    assert "http" not in re.sub(r"http-equiv", "", page)
    assert html.escape(HOSTILE) in page
    pictures = re.findall(r"data:image/(?:png|jpeg);base64,([^\"]+)", page)
    assert len(pictures) >= 12 + 4
    for data in pictures:
        Image.open(io.BytesIO(base64.b64decode(data))).load()


def test_large_sets_are_looked_at_in_parts(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = make_shards(tmp_path / "in", samples=40, side=16), tmp_path / "page.html"
    ended = run(
        capsys, "inspect", f"--data={data}", f"--output={output}", f"--tokenizer={tokenizer}",
        "--limit=10", "--samples=3", "--context_length=6", "--workers=0",
    )  # fmt: skip
    assert ended.code == 0
    page = output.read_text(encoding="utf-8")
    assert "Looked at were 10 of the 40 samples, at equal distances" in words(page)
    assert page.count('class="card guess"') == 3
    assert tiles(page)["over 6 tokens"] == "100.0 %"
    assert evenly(40, 10) == list(range(0, 40, 4))
    assert evenly(3, 10) == [0, 1, 2]


def test_without_a_tokenizer_one_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = make_shards(tmp_path / "in", side=16), tmp_path / "page.html"
    ended = run(capsys, "inspect", f"--data={data}", f"--output={output}", "--workers=0")
    assert ended.code == 0
    assert "SentencePiece, trained on the captions looked at" in words(output.read_text())


@pytest.mark.slow
def test_a_model_says_how_it_reads(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = make_shards(tmp_path / "in"), tmp_path / "page.html"
    ended = run(
        capsys, "inspect", f"--data={data}", f"--output={output}", f"--model={tiny_run}",
        "--workers=0",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    assert f"tokenizer of {tiny_run}" in words(output.read_text())


def test_hostile_samples(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "page.html"
    ended = run(
        capsys, "inspect", f"--data={shared_data / 'hostile'}", f"--output={output}", "--workers=0"
    )
    assert ended.code == 0, ended.err
    assert tiles(output.read_text(encoding="utf-8"))["samples that cannot be used"] == "22"


def test_mistakes(troubled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = f"--data={troubled}", f"--output={tmp_path / 'page.html'}"
    assert "--output: is missing" in mistake(capsys, "inspect", data)
    assert "tokenizer 'nothing'" in mistake(capsys, "inspect", data, output, "--tokenizer=nothing")
    assert "nowhere" in mistake(capsys, "inspect", data, output, "--model=./nowhere")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "1.jpg").write_bytes(b"\xff\xd8")
    (broken / "1.txt").write_text("a caption")
    said = mistake(capsys, "inspect", f"--data={broken}", output)
    assert "none of 1 samples can be used (1 image_undecodable), such as 1.jpg" in said
    assert not (tmp_path / "page.html").exists()


def fact(index: int, digest: bytes, value: int) -> Facts:
    return Facts(index, str(index), ("a",), 1, 1, 1, "PNG", digest, value)


def test_groups_of_duplicates() -> None:
    far = (1 << 64) - 1
    facts = [
        fact(0, b"a", 0b0000),
        fact(1, b"b", far),
        fact(2, b"a", 0b0000),
        fact(3, b"c", 0b1111),  # 4 bits from the first
        fact(4, b"d", 0b1111 << 4 | 0b1111),  # 4 from the one before, 8 from the first
        fact(5, b"e", far >> 20),
    ]
    (same,) = exact_groups(facts)
    assert [member.index for member in same.members] == [0, 2]
    (alike,) = near_groups(facts)
    assert [member.index for member in alike.members] == [0, 3]
    assert alike.distance == 4


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


def test_repeated_captions() -> None:
    assert repeated_captions(["a b", "c", "a  b ", "d", "c", "c"]) == [("c", 3), ("a b", 2)]


def test_throughput_in_words() -> None:
    spent = {READ: Spent(0.01, 0.004), DECODE: Spent(0.1, 0.099), TOKENISE: Spent(0.001, 0.001)}
    measured = Throughput(10, spent)
    assert measured.stages[READ] == pytest.approx(1000)
    assert measured.whole == pytest.approx(10 / 0.111)
    assert measured.bottleneck == "decode and crop"
    assert sum(measured.shares.values()) == pytest.approx(1)
    assert measured.shares["decode and crop"] == pytest.approx(0.1 / 0.111)
    assert not measured.was_busy, "what is waited for in reading is no other work"
    assert Throughput(10, {**spent, DECODE: Spent(0.1, 0.06)}).was_busy
    rates = chip_rates(("ViT-B-32", "ViT-L-14"))
    # 44.4 billion operations a pair, of 98.5 trillion a second.
    assert rates["ViT-B-32"] == pytest.approx(2217, rel=0.01)
    assert rates["ViT-L-14"] < rates["ViT-B-32"]


def test_one_pass_gives_stages_and_the_whole(
    troubled: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each reading of the clock is a millisecond after the last: nothing depends on the machine."""
    ticks = itertools.count()
    reading = lambda: next(ticks) / 1000  # noqa: E731
    monkeypatch.setattr(throughput.time, "perf_counter", reading)
    monkeypatch.setattr(throughput.time, "process_time", lambda: 0.0)
    source = open_source(troubled)
    loader = AsTrained.by_default(load_tokenizer(tokenizer), "its name").loader
    found = measure(source, loader, range(4))
    assert found is not None
    assert found.records == 4
    taken = {name: spent.wall for name, spent in found.spent.items()}
    assert taken == pytest.approx({READ: 0.004, DECODE: 0.004, TOKENISE: 0.001})
    assert found.whole == pytest.approx(4 / 0.009)
    assert all(rate >= found.whole for rate in found.stages.values())
    assert found.was_busy


@pytest.mark.parametrize("values", [[3], [1, 1, 1], [0, 5, 9000], [0.5, 0.75, 2.0]])
def test_histograms(values: list[float]) -> None:
    chart = Histogram(
        "t", values, "units", (2, "mark"), whole=all(isinstance(v, int) for v in values)
    )
    image = Image.open(io.BytesIO(draw_histogram(chart, LIGHT)))
    assert image.width == 880
    assert np.asarray(image.convert("RGBA"))[..., 3].any()


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ([*range(4, 14)] * 50 + [300, 400], 77),  # the axis ends at 13
        ([*range(4, 14)], 77),
        ([*range(4, 14)], 15),
        ([*range(4, 14)], 8),
    ],
)
def test_the_mark_is_always_drawn(values: list[int], where: int) -> None:
    colour = np.array([int(LIGHT.lines[1][at : at + 2], 16) for at in (1, 3, 5)])

    def marked(mark: tuple[float, str] | None) -> int:
        data = draw_histogram(Histogram("t", values, "tokens", mark), LIGHT)
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(int)
        alike = np.abs(pixels[..., :3] - colour).max(-1) < 20
        return int((alike & (pixels[..., 3] > 200)).sum())

    assert marked(None) == 0
    assert marked((where, "context")) > 200


def test_examples_of_each_kind(
    tmp_path: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is rare is shown too, though it comes after much that is common."""
    jpeg = encode(photo(20, 20), "JPEG")
    members = [("a.jpg", jpeg), ("a.txt", b"good")]
    for number in range(30):
        members += [(f"empty{number:02d}.jpg", jpeg), (f"empty{number:02d}.txt", b" ")]
    members += [("late.jpg", jpeg), ("late.txt", b"\xff\xfe\xff")]
    make_tar(tmp_path / "in.tar", members)
    output = tmp_path / "page.html"
    ended = run(
        capsys, "inspect", f"--data={tmp_path / 'in.tar'}", f"--output={output}",
        f"--tokenizer={tokenizer}", "--workers=0",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    unusable = words(sections(output.read_text(encoding="utf-8"))["What cannot be used"])
    assert "late caption_not_utf8" in unusable
    assert len(re.findall(r"empty\d\d caption_empty", unusable)) == 3
