"""`verify` finds what is bad, says where it is, and never ends in a traceback."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_tools_runs import make_shards, make_tar, mistake, run
from pictures import encode, photo

from clip_jax.data.sources import open_source
from clip_jax.dataset_tools.bad_samples import position_of
from clip_jax.dataset_tools.verify import verify
from clip_jax.errors import UserError

JPEG = encode(photo(40, 30), "JPEG")


def test_all_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_shards(tmp_path / "shards")
    report = tmp_path / "report.json"
    ended = run(capsys, "verify", f"--data={data}", f"--output={report}", "--workers=0")
    assert ended.code == 0
    assert ended.out.splitlines()[-2].startswith("6 samples: 6 good, 0 bad; 6 captions")
    found = json.loads(report.read_text())
    assert (found["samples"], found["good"], found["bad"]) == (6, 6, 0)
    sums = {Path(file["path"]).name: file["sha256"] for file in found["files"]}
    assert sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in data.glob("*.tar")
    }
    assert found["fingerprint"] == open_source(data).fingerprint


def test_bad_samples_by_kind_and_position(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "00000.tar"
    make_tar(
        path,
        [
            ("a.jpg", JPEG),
            ("a.txt", b"good"),
            ("b.jpg", JPEG[:-200]),
            ("b.txt", b"its image is cut off"),
            ("c.jpg", JPEG),
            ("c.txt", b" "),
            ("d.txt", b"no image"),
        ],
    )
    report = tmp_path / "report.json"
    ended = run(capsys, "verify", f"--data={path}", f"--output={report}", "--workers=0")
    assert ended.code == 1
    found = json.loads(report.read_text())
    assert (found["samples"], found["good"], found["bad"]) == (4, 1, 3)
    assert found["bad_by_kind"] == {
        "caption_empty": 1,
        "image_missing": 1,
        "image_undecodable": 1,
    }
    assert {sample["key"] for sample in found["bad_samples"]} == {"b", "c", "d"}
    cut = next(sample for sample in found["bad_samples"] if sample["key"] == "b")
    source = open_source(path)
    assert cut["position"] == position_of(source, 1)
    name, _, offset = cut["position"].rpartition(":")
    assert name.endswith("00000.tar")
    assert path.read_bytes()[int(offset) :].startswith(JPEG[:-200])
    assert "4 samples: 1 good, 3 bad (" in ended.out


def test_checksum_is_of_the_samples(tmp_path: Path) -> None:
    one = verify(open_source(make_shards(tmp_path / "one", shards=1)), workers=0)
    same = verify(open_source(make_shards(tmp_path / "same", shards=1)), workers=2)
    assert one["sha256"] == same["sha256"]
    other = verify(open_source(make_shards(tmp_path / "other", shards=1, side=50)), workers=0)
    assert other["fingerprint"] == one["fingerprint"]
    assert other["sha256"] != one["sha256"]


def test_a_folder_has_no_byte_positions(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(b"\xff\xd8 broken")
    (tmp_path / "cat" / "2.jpg").write_bytes(JPEG)
    found = verify(open_source(tmp_path), workers=0)
    (bad,) = found["bad_samples"]
    assert (bad["key"], bad["position"]) == ("cat/1.jpg", "record 0")


def test_workers_change_nothing(tmp_path: Path) -> None:
    data = make_shards(tmp_path / "shards", samples=150, side=16)
    source = open_source(data)
    assert verify(source, workers=2) == verify(source, workers=0)


def test_hostile_samples(shared_data: Path) -> None:
    hostile = shared_data / "hostile"
    expected = json.loads((hostile / "EXPECTED.json").read_text(encoding="utf-8"))
    found = verify(open_source(hostile), workers=0)
    entries = expected["00000.tar"]
    dropped = {key for key, entry in entries.items() if entry["expected"] == "drop"}
    assert {sample["key"] for sample in found["bad_samples"]} == {
        *dropped,
        *expected["00001.tar"]["drop"],
        str(hostile / "00001.tar"),
    }
    assert list(found["damaged"]) == [str(hostile / "00001.tar")]
    assert found["bad_by_kind"]["shard_damaged"] == 1
    least = sum(
        min(entry["samples"]) if isinstance(entry["samples"], list) else entry["samples"]
        for entry in entries.values()
        if entry["expected"] == "keep"
    ) + len(expected["00001.tar"]["keep"])
    assert least <= found["good"] <= least + 1
    because = {"image": len(expected["00001.tar"]["drop"]), "bomb": 0, "caption": 0}
    for key in dropped:
        because[entries[key]["because"]] += 1
    counts = found["bad_by_kind"]
    assert sum(n for kind, n in counts.items() if kind.startswith("caption_")) == because["caption"]
    assert counts["image_bomb"] == because["bomb"]
    assert counts["image_missing"] + counts["image_undecodable"] == because["image"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "command is missing; known are inspect, verify, convert, tokenizer, index, hashes"),
        (("destroy",), "command 'destroy' is unknown; known are inspect, verify"),
        (("verify",), "--data: is missing"),
        (("verify", "--data=nowhere"), "data path nowhere does not exist"),
        (("verify", "--daat=x"), "Unknown command line flag 'daat'"),
        (("verify", "photos"), "'photos': flags only"),
        (("verify", "--data=x", "--format=zip"), "'zip' is unknown; known are auto,"),
        (("verify", "--data=x", "--workers=-1"), "is not a non-negative integer"),
        (("verify", "--data=x", "--output=no/folder/here.json"), "must be a file in a folder"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in mistake(capsys, *arguments)


@pytest.mark.parametrize(
    "command", ["inspect", "verify", "convert", "tokenizer", "index", "hashes"]
)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    ended = run(capsys, command, "--help")
    assert ended.code == 0
    assert f"python -m clip_jax.data {command}" in ended.out
    assert "--data:" in ended.out


def test_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_shards(tmp_path / "shards")
    first = run(capsys, "index", f"--data={data}", "--beside")
    assert first.code == 0
    assert "2 archives, 6 samples, 0 dropped; 2 indexed now, 0 before" in first.out
    assert (data / "00000.tar.index").is_file()
    assert "0 indexed now, 2 before" in run(capsys, "index", f"--data={data}", "--beside").out
    assert "--data: is missing" in mistake(capsys, "index")
    assert "no tar file there" in mistake(capsys, "index", f"--data={tmp_path}/none.tar")


def test_all_bad_samples_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for shard in range(2):  # with the same keys
        members = [("good.jpg", JPEG), ("good.txt", b"good")]
        members += [(f"{number:04d}.txt", b"no image") for number in range(1100)]
        make_tar(tmp_path / f"{shard:05d}.tar", members)
    report = tmp_path / "report.json"
    ended = run(capsys, "verify", f"--data={tmp_path}", f"--output={report}", "--workers=0")
    assert ended.code == 1
    assert "bad: … and 2,180 more; all are listed with --output" in ended.out
    found = json.loads(report.read_text())
    assert found["bad"] == len(found["bad_samples"]) == 2200
    positions = {sample["position"] for sample in found["bad_samples"]}
    assert len(positions) == 2200
    assert f"{tmp_path}/00001.tar:{2048 + 1024 * 1099}" in positions


def test_damaged_archives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_shards(tmp_path / "shards", samples=8, shards=2)
    path = data / "00001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"0007.jpg") + 700])  # in the image of the last sample
    report = tmp_path / "report.json"
    ended = run(capsys, "verify", f"--data={data}", f"--output={report}", "--workers=0")
    assert ended.code == 1
    assert f"damaged: {path}: is truncated at byte {path.stat().st_size}" in ended.out
    assert "9 samples: 7 good, 2 bad (1 image_missing, 1 shard_damaged)" in ended.out
    found = json.loads(report.read_text())
    assert list(found["damaged"]) == [str(path)]
    bad = {sample["key"]: sample for sample in found["bad_samples"]}
    assert bad[str(path)]["position"] == f"{path}:{path.stat().st_size}"
    assert bad[str(path)]["kind"] == "shard_damaged"
    ended = run(capsys, "index", f"--data={data}")
    assert ended.code == 1
    assert f"damaged: {path} is truncated at byte" in ended.out


def test_archives_without_an_end_mark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_shards(tmp_path / "shards", samples=8, shards=2)
    path = data / "00001.tar"
    end = len(path.read_bytes().rstrip(b"\0"))
    path.write_bytes(path.read_bytes()[: -(-end // 512) * 512])
    report = tmp_path / "report.json"
    ended = run(capsys, "verify", f"--data={data}", f"--output={report}", "--workers=0")
    assert ended.code == 0
    assert f"damaged: {path}: has no end mark and may be cut off" in ended.out
    found = json.loads(report.read_text())
    assert (found["good"], found["bad"]) == (8, 0)
    assert found["damaged"] == {str(path): "has no end mark and may be cut off"}
    ended = run(capsys, "index", f"--data={data}")
    assert (ended.code, "has no end mark" in ended.out) == (0, True)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("closed/a.tar", "closed/a.tar cannot be read: Permission denied"),
        ("closed", "closed cannot be read: Permission denied"),
        ("x" * 300 + ".tar", "x.tar does not exist"),
        ("x" * 5000, "x does not exist"),
    ],
)
@pytest.mark.parametrize("command", ["verify", "index"])
def test_what_cannot_be_read(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    path: str,
    message: str,
) -> None:
    """One line, without a traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "closed").mkdir()
    real = {name: getattr(os, name) for name in ("stat", "listdir", "access")}

    def stat(path, *args, **options):  # the tests may run as root, who may read everything
        if str(path).startswith("closed/"):
            raise PermissionError(13, "Permission denied", path)
        return real["stat"](path, *args, **options)

    def listdir(path="."):
        if str(path) == "closed":
            raise PermissionError(13, "Permission denied", path)
        return real["listdir"](path)

    def access(path, *args, **options):
        return str(path) != "closed" and real["access"](path, *args, **options)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "listdir", listdir)
    monkeypatch.setattr(os, "access", access)
    said = mistake(capsys, command, f"--data={path}")
    assert path[-20:] in said
    if command == "verify":
        assert message.lower() in said.lower()


def test_unreadable_archives_do_not_hide_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shards(tmp_path / "shards", samples=6, shards=3)
    for name in ("00000.tar", "00003.tar"):
        (data / name).write_bytes(b"\x1f\x8b no tar" * 100)
    report = tmp_path / "report.json"
    arguments = ("verify", f"--data={data}", f"--output={report}", "--workers=0")
    ended = run(capsys, *arguments)
    assert ended.code == 1
    found = json.loads(report.read_text())
    assert (found["good"], found["bad_by_kind"]) == (4, {"shard_unreadable": 2})
    bad = [str(data / "00000.tar"), str(data / "00003.tar")]
    assert sorted(found["damaged"]) == sorted(x["key"] for x in found["bad_samples"]) == bad
    assert all(f"damaged: {path}: is not an uncompressed" in ended.out for path in bad)
    assert "bad:" not in ended.out
    ended = run(capsys, "index", f"--data={data}")
    assert ended.code == 1
    assert all(f"not indexed: {path} is not an uncompressed tar" in ended.out for path in bad)
    assert "2 archives, 4 samples, 0 dropped" in ended.out
    assert ended.err.strip() == "", "no progress where nobody can see it move"
    for path in data.glob("0000[12].tar"):
        path.write_bytes(b"neither")
    assert run(capsys, *arguments).code == 1
    assert json.loads(report.read_text())["bad"] == 4


def test_an_archive_without_a_usable_sample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_shards(tmp_path / "shards")
    make_tar(data / "x.tar", [("a.txt", b"a"), ("b.txt", b"b")])
    ended = run(capsys, "index", f"--data={data}")
    assert ended.code == 1
    assert "x.tar has no usable sample (2 dropped; a: no complete image member)" in ended.out


@pytest.mark.parametrize("kind", ["csv", "jsonl", "folder", "parquet", "datasets"])
def test_data_without_a_usable_row_are_reported_like_others(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data"
    path.mkdir()
    for number in range(2):
        (path / f"{number}.jpg").write_bytes(JPEG)
    if kind == "csv":
        path = path / "a.csv"
        path.write_text("filepath,caption\n0.jpg,a cat, on a table\n1.jpg,a dog, by a window\n")
    elif kind == "jsonl":
        path = path / "a.jsonl"
        path.write_text('{"image": "0.jpg", "text": ""}\n{"image": "1.jpg", "text": null}\n')
    elif kind == "folder":
        for number in range(2):
            (path / f"{number}.txt").write_text(" ")
    elif kind == "parquet":
        pa = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        path = path / "a.parquet"
        table = pa.table({"image": ["0.jpg", "1.jpg"], "caption": pa.array(["", None])})
        parquet.write_table(table, path)
    else:
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        path = tmp_path / "set"
        columns = {"image": [JPEG, JPEG], "caption": ["", " "]}
        datasets.Dataset.from_dict(columns).save_to_disk(str(path))
    ended = run(capsys, "verify", f"--data={path}", "--workers=0")
    assert ended.code == 1
    assert "2 samples: 0 good, 2 bad" in ended.out
    with pytest.raises(UserError, match=r"2 dropped|2 without"):
        open_source(path)


def test_bad_rows_have_no_byte_positions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "1.jpg").write_bytes(JPEG)
    (tmp_path / "a.csv").write_text("image,caption\n1.jpg,one\n2.jpg, \n")
    ended = run(capsys, "verify", f"--data={tmp_path}/a.csv", "--workers=0")
    assert ended.code == 1
    assert "bad: row 3: caption is empty (caption_empty)" in ended.out


def test_the_program(tmp_path: Path) -> None:
    """As a person starts it, with worker processes that import it again."""
    data = make_shards(tmp_path / "shards", samples=130, side=16)
    command = [sys.executable, "-m", "clip_jax.data", "verify", f"--data={data}", "--workers=2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert "130 samples: 130 good, 0 bad" in ended.stdout
