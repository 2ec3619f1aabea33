"""`verify` finds what is bad, says where it is, and never ends in a traceback."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from dataset_tools_runs import Capture, make_pairs, make_shards, run
from pictures import encode, photo
from programs import run_program
from shards import write_tar
from small_sets import ROWS, WRITERS

from clip_jax.data.sources import open_source
from clip_jax.dataset_tools.bad_samples import position_of
from clip_jax.dataset_tools.verify import verify
from clip_jax.errors import UserError

JPEG = encode(photo(40, 30), "JPEG")


def test_all_good(tmp_path: Path, capsys: Capture) -> None:
    data = make_shards(tmp_path / "shards")
    report = tmp_path / "report.json"
    ended = run(capsys, "verify", data=data, output=report, workers=0)
    assert ended.code == 0
    assert ended.out.splitlines()[-2].startswith("6 samples: 6 good, 0 bad; 6 captions")
    found = json.loads(report.read_text())
    assert (found["samples"], found["good"], found["bad"]) == (6, 6, 0)
    sums = {Path(file["path"]).name: file["sha256"] for file in found["files"]}
    assert sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in data.glob("*.tar")
    }
    assert found["fingerprint"] == open_source(data).fingerprint


def test_bad_samples_by_kind_and_position(tmp_path: Path, capsys: Capture) -> None:
    path, report = tmp_path / "00000.tar", tmp_path / "report.json"
    images = {"a.jpg": JPEG, "b.jpg": JPEG[:-200], "c.jpg": JPEG}
    texts = {"a.txt": b"good", "b.txt": b"its image is cut off", "c.txt": b" ", "d.txt": b"alone"}
    write_tar(path, sorted({**images, **texts}.items()))
    ended = run(capsys, "verify", data=path, output=report, workers=0)
    assert ended.code == 1
    assert "4 samples: 1 good, 3 bad (" in ended.out
    found = json.loads(report.read_text())
    assert (found["samples"], found["good"], found["bad"]) == (4, 1, 3)
    assert found["bad_by_kind"] == dict.fromkeys(
        ("caption_empty", "image_missing", "image_undecodable"), 1
    )
    positions = {sample["key"]: sample["position"] for sample in found["bad_samples"]}
    assert positions.keys() == {"b", "c", "d"}
    assert positions["b"] == position_of(open_source(path), 1)
    name, _, offset = positions["b"].rpartition(":")
    assert name.endswith("00000.tar")
    assert path.read_bytes()[int(offset) :].startswith(JPEG[:-200])


def test_the_checksum_is_of_the_samples(tmp_path: Path) -> None:
    one = open_source(make_shards(tmp_path / "one", samples=150, side=16, shards=1))
    found = verify(one, workers=0)
    assert verify(one, workers=2) == found
    same = open_source(make_shards(tmp_path / "same", samples=150, side=16, shards=1))
    assert verify(same, workers=0)["sha256"] == found["sha256"]
    other = open_source(make_shards(tmp_path / "other", samples=150, side=17, shards=1))
    assert verify(other, workers=0)["sha256"] != found["sha256"]
    assert other.fingerprint == one.fingerprint


def test_a_mixture_and_its_rules(tmp_path: Path, capsys: Capture) -> None:
    """Positions and damage are told through them; --data would name one source."""
    first, second = (make_shards(tmp_path / x, samples=2, shards=1) for x in ("first", "second"))
    make_pairs(second / "small.tar", {"s": (encode(photo(9, 9), "JPEG"), b"a small photo")})
    cut = second / "00000.tar"
    cut.write_bytes(cut.read_bytes()[:-10240].rstrip(b"\0"))
    report = tmp_path / "report.json"
    ended = run(
        capsys,
        "verify",
        f"--config.data.mixture=({{'path': {str(first)!r}}}, {{'path': {str(second)!r}}})",
        "--config.data.filters.min_side=30",
        output=report,
        workers=0,
    )
    assert ended.code == 1
    found = json.loads(report.read_text())
    assert list(found["damaged"]) == [str(cut)]
    bad = {sample["kind"]: sample for sample in found["bad_samples"]}
    assert bad["image_filtered"]["key"] == f"{second}:s"
    assert bad["image_filtered"]["position"].startswith(f"{second}/small.tar:")
    assert len(found["files"]) == 3
    assert found["data.filters.min_side"] == 30


def test_other_formats_have_no_byte_positions(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.jpg").write_bytes(b"\xff\xd8 broken")
    (tmp_path / "cat" / "2.jpg").write_bytes(JPEG)
    (bad,) = verify(open_source(tmp_path), workers=0)["bad_samples"]
    assert (bad["key"], bad["position"]) == ("cat/1.jpg", "record 0")
    (tmp_path / "a.csv").write_text("image,caption\ncat/2.jpg,one\n2.jpg, \n")
    (bad,) = verify(open_source(tmp_path / "a.csv"), workers=0)["bad_samples"]
    assert (bad["key"], bad["kind"], bad["position"]) == ("row 3", "caption_empty", None)


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


def test_index(tmp_path: Path, capsys: Capture) -> None:
    data = make_shards(tmp_path / "shards")
    first = run(capsys, "index", "--beside", data=data)
    assert first.code == 0
    assert "2 archives, 6 samples, 0 dropped; 2 indexed now, 0 before" in first.out
    assert (data / "00000.tar.index").is_file()
    assert "0 indexed now, 2 before" in run(capsys, "index", "--beside", data=data).out
    other = run(capsys, "index", "--config.data.caption_column=place", data=data)
    assert "2 indexed now, 0 before" in other.out, "an index is good for one choice of columns"


def test_all_bad_samples_are_listed(tmp_path: Path, capsys: Capture) -> None:
    for shard in range(2):  # with the same keys
        members = [("good.jpg", JPEG), ("good.txt", b"good")]
        members += [(f"{number:04d}.txt", b"no image") for number in range(1100)]
        write_tar(tmp_path / f"{shard:05d}.tar", members)
    report = tmp_path / "report.json"
    ended = run(capsys, "verify", data=tmp_path, output=report, workers=0)
    assert ended.code == 1
    assert "bad: … and 2,180 more; all are listed with --output" in ended.out
    found = json.loads(report.read_text())
    assert found["bad"] == len(found["bad_samples"]) == 2200
    positions = {sample["position"] for sample in found["bad_samples"]}
    assert len(positions) == 2200
    assert f"{tmp_path}/00001.tar:{2048 + 1024 * 1099}" in positions


def truncate(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"0007.jpg") + 700])  # in the image of the last sample


def cut_end_mark(path: Path) -> None:
    end = len(path.read_bytes().rstrip(b"\0"))
    path.write_bytes(path.read_bytes()[: -(-end // 512) * 512])


# (what is done to one of two archives, exit code, kinds of bad samples, what both programs say)
DAMAGES = {
    "truncated": (
        truncate,
        1,
        {"image_missing": 1, "shard_damaged": 1},
        "is truncated at byte",
    ),
    "no end mark": (cut_end_mark, 0, {}, "has no end mark and may be cut off"),
    "no tar": (
        lambda path: path.write_bytes(b"\x1f\x8b no tar" * 100),
        1,
        {"shard_unreadable": 1},
        "is not an uncompressed tar",
    ),
    "no sample": (
        lambda path: write_tar(path, [("a.txt", b"a"), ("b.txt", b"b")]),
        1,
        {"image_missing": 2},
        "no complete image member",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_archive_does_not_hide_the_others(
    damage: str, tmp_path: Path, capsys: Capture
) -> None:
    change, code, kinds, said = DAMAGES[damage]
    data, report = make_shards(tmp_path / "shards", samples=8, shards=2), tmp_path / "report.json"
    path = data / "00001.tar"
    change(path)
    ended = run(capsys, "verify", data=data, output=report, workers=0)
    assert ended.code == code
    found = json.loads(report.read_text())
    assert found["good"] == {"truncated": 7, "no end mark": 8}.get(damage, 4)
    assert found["bad_by_kind"] == kinds
    assert re.search(f"{path}: {said}|: {said}", ended.out)
    if damage != "no sample":
        assert found["damaged"].keys() == {str(path)}
        assert f"damaged: {path}: {said}" in ended.out
    places = {sample["key"]: sample["position"] for sample in found["bad_samples"]}
    if damage == "truncated":
        assert places[str(path)] == f"{path}:{path.stat().st_size}"
    ended = run(capsys, "index", data=data)
    assert ended.code == code
    assert re.search(rf"{path}\b.* {said}", ended.out)
    assert "8 samples" in ended.out or "7 samples" in ended.out or "4 samples" in ended.out
    assert ended.err.strip() == "", "no progress where nobody can see it move"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "folder", "parquet", "huggingface"])
def test_data_without_a_usable_row_are_reported_like_others(
    kind: str, tmp_path: Path, capsys: Capture
) -> None:
    write, packages = WRITERS[kind]
    for name in packages:
        pytest.importorskip(name)
    path = write(tmp_path / "data", [row | {"captions": [" "]} for row in ROWS[:2]])
    ended = run(capsys, "verify", data=path, workers=0)
    assert ended.code == 1
    assert "2 samples: 0 good, 2 bad" in ended.out
    with pytest.raises(UserError, match=r"2 dropped|2 without"):
        open_source(path)


def test_the_program(tmp_path: Path) -> None:
    """As a person starts it, with worker processes that import it again."""
    data = make_shards(tmp_path / "shards", samples=130, side=16)
    ended = run_program("clip_jax.data", "verify", f"--data={data}", "--workers=2")
    assert ended.returncode == 0, ended.stderr
    assert "130 samples: 130 good, 0 bad" in ended.stdout
