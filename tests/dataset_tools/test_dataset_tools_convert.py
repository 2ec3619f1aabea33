"""`convert` loses nothing, writes the same bytes whenever it is run, and nothing outside."""

import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from dataset_tools_runs import (
    Capture,
    Ended,
    contents,
    make_pairs,
    make_shards,
    mistake,
    run,
)
from pictures import encode, photo
from PIL import Image

from clip_jax.data.sources import open_source
from clip_jax.dataset_tools.convert.tar_writer import plain, safe_name
from clip_jax.dataset_tools.recode import Recoding
from clip_jax.errors import DecodeError
from clip_jax.images.decoding import decode

JPEG = encode(photo(40, 30), "JPEG")


def convert(capsys: Capture, data: Path, out: Path, **flags: object) -> Ended:
    ended = run(capsys, "convert", data=data, output=out, **{"workers": 0, **flags})
    assert ended.code == 0, ended.err
    return ended


def records(path: Path) -> list:
    source = open_source(path)
    return [
        (source[index].key, source[index].image, source[index].captions, source.metadata(index))
        for index in range(len(source))
    ]


def captioned_folder(folder: Path) -> Path:
    """Images of several formats with several captions each."""
    for number, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF")):
        path = folder / f"part.{number % 2}" / f"{number}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(photo(64, 40 + number, seed=number), kind))
        path.with_suffix(".txt").write_text(f"first of {number}\nsecond\nthird, größer 鍵\n")
    return folder


@pytest.mark.parametrize("to", ["webdataset", "array_record"])
def test_round_trip(to: str, tmp_path: Path, capsys: Capture) -> None:
    data, out = make_shards(tmp_path / "in", samples=7), tmp_path / "out"
    ended = convert(capsys, data, out, to=to, samples_per_shard=3)
    assert "3 shards, 7 samples" in ended.out
    assert records(out) == records(data)
    assert len(list(out.glob("0000?.*"))) == 3
    assert not (out / ".convert").exists()


@pytest.mark.parametrize("to", ["webdataset", "array_record"])
def test_all_captions_come_back(to: str, tmp_path: Path, capsys: Capture) -> None:
    data, out = captioned_folder(tmp_path / "in"), tmp_path / "out"
    convert(capsys, data, out, to=to)
    before, after = records(data), records(out)
    assert [record[1:3] for record in after] == [record[1:3] for record in before]
    assert all(len(record[2]) == 3 for record in after)
    if to == "webdataset":
        assert [record[0] for record in after] == ["part.0/0", "part.0/2", "part.1/1", "part.1/3"]
        assert after[0][3]["source_key"] == "part.0/0.jpeg"


def test_workers_change_no_byte(tmp_path: Path, capsys: Capture) -> None:
    """The default size of shards gives small data to several workers."""
    data = make_shards(tmp_path / "in", samples=600, side=8)
    for workers in (0, 2):
        convert(capsys, data, tmp_path / f"out{workers}", workers=workers, resize=6)
    assert len(list((tmp_path / "out2").glob("*.tar"))) == 3
    assert contents(tmp_path / "out0") == contents(tmp_path / "out2")
    assert len(records(tmp_path / "out2")) == 600
    with tarfile.open(tmp_path / "out2" / "00000.tar") as archive:
        for info in archive:
            assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")


def test_bad_samples_are_left_out_and_listed(tmp_path: Path, capsys: Capture) -> None:
    pairs = {"a": (JPEG, b"good"), "b": (JPEG[:-200], b"cut off"), "c": (JPEG, b"")}
    path, out = make_pairs(tmp_path / "00000.tar", pairs), tmp_path / "out"
    assert "2 left out" in convert(capsys, path, out, samples_per_shard=1).out
    assert [record[0] for record in records(out)] == ["a"]
    assert not (out / "00001.tar").exists(), "a shard without samples is not written"
    found = json.loads((out / "convert.json").read_text())
    assert found["left_out"] == {"caption_empty": 1, "image_undecodable": 1}
    assert found["source"]["fingerprint"] == open_source(path).fingerprint
    assert found["shards"][1]["bad_samples"][0]["key"] == "b"
    assert "c" in found["left_out_when_opened"]
    assert found["complete"] is True
    make_pairs(tmp_path / "bad.tar", {"b": pairs["b"]})
    said = mistake(
        capsys, "convert", data=tmp_path / "bad.tar", output=tmp_path / "none", workers=0
    )
    assert "no sample is usable" in said


@pytest.mark.slow
def test_killed_and_resumed(tmp_path: Path, capsys: Capture) -> None:
    data = make_shards(tmp_path / "in", samples=10, side=500)
    flags = {"samples_per_shard": 1, "encode": "webp", "quality": 90}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    convert(capsys, data, whole, **flags)
    command = [sys.executable, "-m", "clip_jax.data", "convert", f"--data={data}"]
    command += [f"--output={broken}", "--workers=2", *(f"--{k}={v}" for k, v in flags.items())]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(list(broken.glob("*.tar"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    there = {path: path.stat().st_mtime_ns for path in broken.glob("*.tar")}
    assert 2 <= len(there) < 10, "killed in the middle"
    assert json.loads((broken / "convert.json").read_text())["complete"] is False
    for path in there:
        assert path.read_bytes() == (whole / path.name).read_bytes(), "every file is whole"
    time.sleep(0.3)  # workers notice that nobody is there
    there = {path: path.stat().st_mtime_ns for path in broken.glob("*.tar")}
    convert(capsys, data, broken, **flags)
    assert contents(broken) == contents(whole)
    assert {path: path.stat().st_mtime_ns for path in there} == there, "not written again"


def test_complete_shards_stay_and_lost_ones_are_made_again(tmp_path: Path, capsys: Capture) -> None:
    data, out = make_shards(tmp_path / "in"), tmp_path / "out"
    assert convert(capsys, data, out, samples_per_shard=2).out.startswith(
        f"written: {out} (3 shards, 6 samples"
    )
    before = contents(out)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    ended = convert(capsys, data, out, samples_per_shard=2)
    assert ended.out.startswith(f"was complete already: {out} (3 shards, 6 samples")
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == times
    (out / "00001.tar").unlink()
    (out / "00002.tar").write_bytes(b"short")
    assert convert(capsys, data, out, samples_per_shard=2).out.startswith("written:")
    assert contents(out) == before


@pytest.mark.parametrize("kind", ["folder", "csv", "jsonl", "tar", "mixture", "huggingface"])
def test_a_changed_image_is_noticed(kind: str, tmp_path: Path, capsys: Capture) -> None:
    """Keys and captions are the same."""
    folder, out = captioned_folder(tmp_path / "in"), tmp_path / "out"
    changed = folder / "part.1" / "1.png"
    (tmp_path / "in.csv").write_text("image,caption\nin/part.1/1.png,a caption\n")
    (tmp_path / "in.jsonl").write_text('{"image": "in/part.1/1.png", "caption": "a caption"}\n')
    mixture = f"--config.data.mixture=({{'path': {str(tmp_path / 'in.csv')!r}}},)"
    data = {"folder": folder, "tar": folder / "0.tar"}.get(kind, tmp_path / f"in.{kind}")
    if kind == "tar":
        changed = make_pairs(data, {"a": (JPEG, b"a caption")})
    elif kind == "huggingface":
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        columns = {"image": [JPEG], "caption": ["a caption"]}
        datasets.Dataset.from_dict(columns).save_to_disk(str(data))
        changed = data / "state.json"
    words = [mixture] if kind == "mixture" else [f"--data={data}"]
    arguments = ("convert", *words, "--config.data.captions.clean=True", f"--output={out}")
    assert run(capsys, *arguments, workers=0).code == 0
    assert "complete already" in run(capsys, *arguments, workers=0).out
    if kind == "tar":
        make_pairs(changed, {"a": (encode(photo(9, 9), "JPEG"), b"a caption")})
    elif kind == "huggingface":
        changed.write_text(changed.read_text() + "\n")
    else:
        changed.write_bytes(encode(photo(9, 9, seed=5), "PNG"))
    assert "was begun with files of other size or time of change" in mistake(capsys, *arguments)


def test_what_is_refused(tmp_path: Path, capsys: Capture) -> None:
    data, out = make_shards(tmp_path / "in"), tmp_path / "out"
    convert(capsys, data, out)
    before = contents(out)
    other = make_shards(tmp_path / "other", samples=3)
    for flags, said in (
        ({"resize": 32}, "other resize: None there, 32 now"),
        ({"data": other}, "other data"),
        ({"output": data}, "is not empty"),
        ({"output": ""}, "--output: is missing"),
        ({"samples_per_shard": 0}, "samples_per_shard=0"),
    ):
        given = {"data": data, "output": out, "workers": 0, **flags}
        assert said in mistake(capsys, "convert", **given), flags
    assert contents(out) == before


def test_nothing_is_written_outside(tmp_path: Path, capsys: Capture) -> None:
    names = ["../escape", "/absolute", "a/../../up", "x/.hidden/y", "0"]
    path = make_pairs(tmp_path / "in.tar", {name: (JPEG, name.encode()) for name in names})
    out = tmp_path / "room" / "out"
    convert(capsys, path, out)
    assert {entry.name for entry in tmp_path.iterdir()} == {"in.tar", "room"}
    assert [entry.name for entry in out.parent.iterdir()] == ["out"]
    assert {entry.name for entry in out.iterdir()} == {"00000.tar", "convert.json"}
    with tarfile.open(out / "00000.tar") as archive:
        for name in archive.getnames():
            assert not name.startswith("/")
            assert ".." not in Path(name).parts
    assert [captions for _, _, captions, _ in records(out)] == [(name,) for name in names]


def test_hostile_samples_survive(shared_data: Path, tmp_path: Path, capsys: Capture) -> None:
    out, hostile = tmp_path / "out", shared_data / "hostile"
    convert(capsys, hostile, out)
    good = []
    for key, image, captions, _ in records(hostile):
        try:
            decode(image)
        except DecodeError:
            continue
        good.append((key, image, captions))
    # A second sample of the same key gets a name of its own.
    after = [(key.removesuffix("-2"), image, captions) for key, image, captions, _ in records(out)]
    assert after == good


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("000012", "000012"),
        ("v1.0/part.a/x", "v1.0/part.a/x"),
        ("cat/001.jpg", "cat/001"),
        ("https://host/a.b/c.d.png", "https:/host/a.b/c_d"),
        ("../../etc/passwd", "etc/passwd"),
        ("/", "sample"),
        (".hidden", "_hidden"),
        ("line\nbreak\x00", "line_break_"),
        ("C:\\temp\\x", "C:_temp_x"),
        ("ключ 鍵", "ключ 鍵"),
    ],
)
def test_names(key: str, name: str) -> None:
    assert safe_name(key) == name


def test_plain() -> None:
    value = {"a": np.int64(3), "b": [float("nan"), np.float32(0.5)], "c": (None, True), 4: b"x"}
    assert plain(value) == {"a": 3, "b": [None, 0.5], "c": [None, True], "4": "b'x'"}
    json.dumps(plain(value), allow_nan=False)


def test_recoding() -> None:
    def opened(data: bytes) -> Image.Image:
        return Image.open(io.BytesIO(data))

    large, small = (encode(photo(*size), "JPEG") for size in ((400, 300), (90, 60)))
    half = opened(Recoding(resize=150)(large))
    assert (half.size, half.format) == ((200, 150), "JPEG")
    exact = np.asarray(decode(large).resize((200, 150), Image.Resampling.BICUBIC), np.int16)
    assert np.abs(np.asarray(half, np.int16) - exact).mean() < 4, "antialiased, as Pillow does"
    assert Recoding(resize=150)(small) == Recoding(encode="jpeg")(small) == small
    assert opened(Recoding(encode="webp", resize=60)(small)).format == "WEBP"
    pixels = np.asarray(photo(30, 20))
    assert np.array_equal(decode(Recoding()(pixels)), pixels), "bare pixels become PNG"
    assert opened(Recoding(resize=40)(encode(photo(90, 80), "GIF"))).format == "PNG"
    with pytest.raises(DecodeError, match="20000x1 cannot be written as webp"):
        Recoding(encode="webp")(encode(photo(20000, 1), "PNG"))
