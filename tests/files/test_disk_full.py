"""A disk that takes no more, at every place where a run writes: one line, exit 2, and a resume that
gives the run that never failed.

The disk is a file size limit (`RLIMIT_FSIZE`), which works everywhere, and once a small tmpfs.
"""

import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from places import REPOSITORY, SUPPORT

from clip_jax.dataset_tools.output_files import write_text as write_output
from clip_jax.errors import UserError
from clip_jax.files import stores
from clip_jax.files.disk import replacing_folder, unwritable, write_text, writing
from clip_jax.training.log.metrics import Board, JsonLines, read_rows

CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_config

def get_config():
    return tiny_config(steps=6, batch_size=8, checkpoint__every_steps=3)
"""
GO_ON = "the same command then goes on from the newest checkpoint"


def start(
    folder: Path, workdir: Path, limit: int | None = None, *flags: str
) -> subprocess.CompletedProcess[str]:
    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    program = (sys.executable, "-m", "clip_jax.train")
    return subprocess.run(
        [*program, f"--config={folder / 'tiny.py'}", f"--workdir={workdir}", *flags],
        cwd=REPOSITORY,
        preexec_fn=set_limit,
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_one_line(result: subprocess.CompletedProcess[str], reason: str, where: str) -> None:
    """Exit 2; of what is on stderr besides the run's own progress there is one line."""
    own = ("starting", "resuming", "first step", "step ", "WARNING: tokenizer", "WARNING: resuming")
    shown = [line for line in result.stderr.splitlines() if "already trained" not in line]
    lines = [line for line in shown if not line.startswith(own)]
    assert result.returncode == 2, result.stderr[-3000:]
    assert len(lines) == 1, result.stderr[-3000:]
    assert lines[0].startswith("error: "), lines
    assert where in lines[0]
    assert f"cannot be written ({reason}); " in lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration, a run that was never disturbed ("whole"), and one that stands at step 3."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "tiny.py").write_text(CONFIG.format(tests=str(SUPPORT)))
    result = start(folder, folder / "whole", None, "--config.report=true")
    assert result.returncode == 0, result.stderr
    half = shutil.copytree(folder / "whole", folder / "half")
    for name in ("checkpoints/6", "model"):
        shutil.rmtree(half / name)
    (half / "report.html").unlink()
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        lines = [row for row in read_rows(half / name) if row["step"] <= 3]
        (half / name).write_text("".join(json.dumps(row) + "\n" for row in lines))
    return folder


def assert_resumes(folder: Path, workdir: Path, *flags: str) -> None:
    result = start(folder, workdir, None, *flags)
    assert result.returncode == 0, result.stderr[-3000:]
    values = [
        [(row["step"], row["loss"], row["grad_norm"]) for row in read_rows(run / "metrics.jsonl")]
        for run in (workdir, folder / "whole")
    ]
    assert values[0] == values[1]
    assert (workdir / "model" / "config.json").is_file()
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"3", "6"}


# Place -> (the run to begin with, what is lost of it, the greatest file in bytes, flags, where).
PLACES: dict[str, tuple[str | None, str, int, tuple[str, ...], str]] = {
    "start": (None, "", 200, (), "/config.json: "),
    "checkpoint": ("half", "", 12_000, (), "/checkpoints/6: "),
    "export": ("whole", "model", 30_000, (), "/model"),
    "report": ("whole", "", 40_000, ("--config.report=true",), "/report.html: "),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_files_that_may_not_grow(place: str, folder: Path, tmp_path: Path) -> None:
    before, lost, limit, flags, where = PLACES[place]
    workdir = tmp_path / "run"
    if before is not None:
        shutil.copytree(folder / before, workdir)
    if lost:
        shutil.rmtree(workdir / lost)
    result = start(folder, workdir, limit, *flags)
    assert_one_line(result, "File too large", where)
    assert "raise the limit of a file's size (ulimit -f); " in result.stderr
    assert GO_ON in result.stderr or place == "report"
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        if (workdir / name).exists():  # no line is torn
            text = (workdir / name).read_text()
            assert len(read_rows(workdir / name)) == text.count("\n")
    assert_resumes(folder, workdir, *flags)


@pytest.mark.slow
def test_a_disk_that_is_full_or_read_only(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()

    def mount(options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(small)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this process may not mount a tmpfs")

    mount("size=40m")
    try:
        run = shutil.copytree(folder / "half", small / "run")
        disk = os.statvfs(small)
        used_kib = (disk.f_blocks - disk.f_bfree) * disk.f_frsize // 1024
        mount(f"remount,size={used_kib + 60}k")
        result = start(folder, run)
        assert_one_line(result, "No space left on device", "/checkpoints/6: ")
        assert f"free some space; {GO_ON}" in result.stderr
        mount("remount,size=40m,ro")
        result = start(folder, run)
        assert result.returncode == 2
        assert result.stderr == f"error: --workdir={run}: cannot be written\n"
        result = start(folder, small / "new")
        assert "cannot be made (Read-only file system)" in result.stderr
        mount("remount,rw")
        assert_resumes(folder, run)
    finally:
        subprocess.run(["umount", str(small)], check=True)


def of_disk(number: int, path: str | bytes | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)


def full(*_: Any, **__: Any) -> None:
    raise of_disk(errno.ENOSPC)


def chained(*errors: BaseException) -> BaseException:
    """The last, which came from the one before it, and so on."""
    for before, after in itertools.pairwise(errors):
        after.__cause__ = before
    return errors[-1]


TENSORSTORE = (
    'RESOURCE_EXHAUSTED: Failed writing: "/r/checkpoints/6.orbax-checkpoint-tmp/rest/d/3e33":'
    " Failed to write 51656 bytes to file 17: {} [type.googleapis.com/tensorstore]\n lines"
)


def of_tensorstore(number: int) -> ValueError:
    return ValueError(TENSORSTORE.format(os.strerror(number)))


TORN = chained(OSError(errno.ENOSPC, "no"), ValueError("x"), RuntimeError("handle is closed"))
FULL, CLOSED = "free some space", "give a folder that can be written"
GROWN = "raise the limit of a file's size (ulimit -f)"


@pytest.mark.parametrize(
    ("error", "where", "reason", "advice"),
    [
        (of_disk(errno.ENOSPC, "/a/b"), "/a/b", "No space left on device", FULL),
        (of_disk(errno.EDQUOT), "/r", "Disk quota exceeded", FULL),
        (of_disk(errno.EFBIG, b"/a"), "/a", "File too large", GROWN),
        (of_disk(errno.EROFS, "/a"), "/a", "Read-only file system", CLOSED),
        (of_disk(errno.EACCES, "/r/x"), "/r/x", "Permission denied", CLOSED),
        (of_disk(errno.EACCES, "/data/x"), None, "", ""),
        (of_tensorstore(errno.ENOSPC), "/r/checkpoints/6", "No space left on device", FULL),
        (of_tensorstore(errno.EACCES), "/r/checkpoints/6", "Permission denied", CLOSED),
        (TORN, "/r", "No space left on device", FULL),
        (of_disk(errno.ENOENT, "/r/x"), None, "", ""),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes"), None, "", ""),
    ],
)
def test_what_is_told_of_an_error(
    error: BaseException, where: str | None, reason: str, advice: str
) -> None:
    expected = None if where is None else f"{where}: cannot be written ({reason}); {advice}"
    told = unwritable(error, Path("/r"))
    assert (None if told is None else str(told)) == expected
    with pytest.raises(UserError if expected else type(error)) as raised:  # noqa: SIM117
        with writing(Path("/r"), "; then"):
            raise error
    if expected:
        assert str(raised.value) == f"{expected}; then"
    with pytest.raises(UserError, match=r"^mine$"), writing(Path("/r")):
        raise UserError("mine") from error


@pytest.mark.parametrize("room", [0, 1, 10, 25])
def test_rows_that_do_not_fit_leave_no_part_of_themselves(room: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = JsonLines(path, 0)
    rows.extend([{"step": 1, "loss": 0.5}])
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, hard))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            rows.extend([{"step": 2, "loss": 0.25}, {"step": 2, "loss": 0.125}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert raised.value.filename == str(path)
    assert path.read_text() == '{"step": 1, "loss": 0.5}\n'
    assert rows.rows == [{"step": 1, "loss": 0.5}]
    rows.close()


@pytest.mark.parametrize("torn", ["", "{", '{"step": 3', '{"step": 3, "loss": 0.5', "\0\0\0"])
def test_a_line_that_a_kill_has_torn_is_repaired(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n' + torn)
    assert [row["step"] for row in read_rows(path)] == [1, 2]
    rows = JsonLines(path, 2)
    rows.extend([{"step": 3}])
    rows.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_tensorboard_reads_what_is_written(tmp_path: Path) -> None:
    module = pytest.importorskip("tensorboardX.proto.event_pb2")
    board = Board(tmp_path, 7)
    board.add({"train/loss": 0.5, "train/rate": 2.0}, 8)
    board.close()
    (path,) = tmp_path.iterdir()
    data, events = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        events.append(module.Event.FromString(data[12 : 12 + size]))
        data = data[16 + size :]
    assert [event.step for event in events] == [0, 8, 8]
    assert events[0].file_version == "brain.Event:2"
    assert events[1].session_log.status == module.SessionLog.START
    values = {value.tag: value.simple_value for value in events[2].summary.value}
    assert values == {"train/loss": 0.5, "train/rate": 2.0}
    board._writer.write_event = full
    with pytest.raises(OSError, match="No space left") as raised:
        board.add({"train/loss": 0.5}, 9)
    assert raised.value.filename == str(tmp_path)


def test_files_and_folders_are_replaced_or_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = tmp_path / "config.json", tmp_path / "model"
    write_text(path, "old \udcff")
    for name in ("older", "old"):
        with replacing_folder(folder) as aside:
            (aside / name).touch()
    with pytest.raises(OSError, match="No space left"), replacing_folder(folder):
        full()
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*config\.json'"):
        write_text(path, "new")
    assert path.read_text() == "old ?"
    assert [file.name for file in folder.iterdir()] == ["old"]
    assert sorted(tmp_path.iterdir()) == [path, folder]


def test_a_folder_comes_back_if_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, replace = tmp_path / "model", os.replace
    folder.mkdir()
    (folder / "old").touch()
    calls = []

    def fails_once(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr("clip_jax.files.disk.os.replace", fails_once)
    with pytest.raises(OSError, match="Input/output"), replacing_folder(folder):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (folder / "old").exists()


def test_outputs_and_the_cache_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"written \(No space left on device\); free some space$"):
        write_output(tmp_path / "report.json", "x")
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path))
    with pytest.raises(UserError) as caught, stores.told(tmp_path / "x"):
        full()
    assert str(caught.value) == (
        f"{tmp_path}/x cannot be written: No space left on device; free some space, or set"
        " CLIP_JAX_CACHE to a folder where we may write"
    )
