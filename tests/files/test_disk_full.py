"""A disk that takes no more, at every place where a run writes: one line, exit 2, and a resume that
gives the run that never failed.

The disk is a file size limit (`RLIMIT_FSIZE`), which works everywhere, or a small tmpfs where this
process may mount one.
"""

import contextlib
import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from places import REPOSITORY, SUPPORT
from shards import write_shards

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
    folder: Path, workdir: Path, limit: int | None = None, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    program = (sys.executable, "-m", "clip_jax.train")
    return subprocess.run(
        [*program, f"--config={folder / 'tiny.py'}", f"--workdir={workdir}", *flags],
        cwd=REPOSITORY,
        env=os.environ | environment,
        preexec_fn=set_limit,
        capture_output=True,
        text=True,
        timeout=90,
    )


def assert_one_line(result: subprocess.CompletedProcess[str], reason: str, where: str) -> None:
    """Exit 2; of what is on stderr besides the run's own progress there is one line."""
    own = ("starting", "resuming", "first step", "step ", "WARNING: tokenizer", "WARNING: resuming")
    lines = [
        line
        for line in result.stderr.splitlines()
        if not line.startswith(own) and "already trained" not in line
    ]
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


def assert_resumes(folder: Path, workdir: Path, *flags: str, **environment: str) -> None:
    result = start(folder, workdir, None, *flags, **environment)
    assert result.returncode == 0, result.stderr[-3000:]
    values = [
        [(row["step"], row["loss"], row["grad_norm"]) for row in read_rows(run / "metrics.jsonl")]
        for run in (workdir, folder / "whole")
    ]
    assert values[0] == values[1]
    assert (workdir / "model" / "config.json").is_file()
    assert {p.name for p in (workdir / "checkpoints").iterdir()} == {"3", "6"}


def swollen(workdir: Path) -> None:
    """Leaves room in metrics.jsonl for less than a row more, where other files have enough."""
    rows = read_rows(workdir / "metrics.jsonl")
    rows[0]["padding"] = "x" * (5900 - (workdir / "metrics.jsonl").stat().st_size)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(text)


@contextlib.contextmanager
def disk(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """A disk of so many bytes; what it gives changes the size. Skips where we may not mount."""

    def mount(*arguments: str) -> None:
        command = ["mount", "-t", "tmpfs", *arguments, "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"this process may not mount a tmpfs: {done.stderr.strip()}")

    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("there is no program to mount a tmpfs with")
    mount("-o", f"size={size}")
    try:
        yield lambda size: mount("-o", f"remount,{size}")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def used(folder: Path) -> int:
    """KiB."""
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize // 1024


# Place -> (the run that it begins with, what is done to it, the greatest file in bytes, the room on
# the disk in KiB, flags, where).
PLACES: dict[str, tuple[str | None, Any, int, int, tuple[str, ...], str]] = {
    "start": (None, None, 200, 0, (), "/config.json: "),
    "metrics": ("half", swollen, 6000, 8, (), "/metrics.jsonl: "),
    "checkpoint": ("half", None, 12_000, 60, (), "/checkpoints/6: "),
    "export": ("whole", lambda run: shutil.rmtree(run / "model"), 30_000, 40, (), "/model"),
    "report": ("whole", None, 40_000, 40, ("--config.report=true",), "/report.html: "),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["limit", "full"])
def test_a_disk_that_takes_no_more(kind: str, place: str, folder: Path, tmp_path: Path) -> None:
    before, change, limit, room, flags, where = PLACES[place]
    with contextlib.ExitStack() as stack:
        small = tmp_path / "small"
        if kind == "full":
            set_size = stack.enter_context(disk(small, "40m"))
        workdir = small / "run"
        # A new run for a full disk: there, a row more may fit into the last page.
        if before is not None and (kind, place) != ("full", "metrics"):
            shutil.copytree(folder / before, workdir)
            if change is not None:
                change(workdir)
        if kind == "limit":
            result = start(folder, workdir, limit, *flags)
            assert_one_line(result, "File too large", where)
            assert "raise the limit of a file's size (ulimit -f); " in result.stderr
        else:
            if place == "start":
                where = "/run"  # nothing at all can be made
                (small / "ballast").write_bytes(b"x" * 8192)
            set_size(f"size={used(small) + room}k")
            result = start(folder, workdir, None, *flags)
            assert_one_line(result, "No space left on device", where)
            assert "free some space; " in result.stderr
            set_size("size=40m")
        assert GO_ON in result.stderr or place == "report"
        for name in ("metrics.jsonl", "evaluation.jsonl"):
            if (workdir / name).exists():  # no line is torn
                text = (workdir / name).read_text()
                assert len(read_rows(workdir / name)) == text.count("\n")
        assert_resumes(folder, workdir, *flags)


@pytest.mark.slow
def test_a_disk_that_is_read_only(folder: Path, tmp_path: Path) -> None:
    with disk(tmp_path / "small", "40m") as set_size:
        shutil.copytree(folder / "half", tmp_path / "small" / "run")
        set_size("ro")
        result = start(folder, tmp_path / "small" / "run")
        assert result.returncode == 2
        assert result.stderr == f"error: --workdir={tmp_path}/small/run: cannot be written\n"
        result = start(folder, tmp_path / "small" / "new")
        assert "cannot be made (Read-only file system)" in result.stderr
        set_size("rw")
        assert_resumes(folder, tmp_path / "small" / "run")


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["false", "true"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_that_is_full(streaming: str, workers: int, folder: Path, tmp_path: Path) -> None:
    data = write_shards(tmp_path / "set", (9, 9, 9))
    flags = (
        *(f"--config.data.path={data}", "--config.data.format=auto", "--config.steps=2"),
        *(f"--config.data.streaming={streaming}", f"--config.data.workers={workers}"),
    )
    cache = {"CLIP_JAX_CACHE": str(tmp_path / "cache")}
    result = start(folder, tmp_path / "run", 100, *flags, **cache)
    assert result.returncode == 2, result.stderr[-3000:]
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/cache/")
    assert "cannot be written: File too large; raise the limit" in error
    assert "or set CLIP_JAX_CACHE to a folder where we may write" in error
    assert "Traceback" not in result.stderr
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert start(folder, tmp_path / "run", None, *flags, **cache).returncode == 0


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
TORN = chained(OSError(errno.ENOSPC, "no"), ValueError("x"), RuntimeError("handle is closed"))
FULL, CLOSED = "free some space", "give a folder that can be written"


@pytest.mark.parametrize(
    ("error", "where", "reason", "advice"),
    [
        (of_disk(errno.ENOSPC, "/a/b"), "/a/b", "No space left on device", FULL),
        (of_disk(errno.EDQUOT), "/r", "Disk quota exceeded", FULL),
        (
            *(of_disk(errno.EFBIG, b"/a"), "/a", "File too large"),
            "raise the limit of a file's size (ulimit -f)",
        ),
        (of_disk(errno.EROFS, "/a"), "/a", "Read-only file system", CLOSED),
        (of_disk(errno.EACCES, "/r/x"), "/r/x", "Permission denied", CLOSED),
        (of_disk(errno.EACCES, "/data/x"), None, "", ""),
        (
            ValueError(TENSORSTORE.format("No space left on device")),
            *("/r/checkpoints/6", "No space left on device", FULL),
        ),
        (
            ValueError(TENSORSTORE.format("Permission denied")),
            *("/r/checkpoints/6", "Permission denied", CLOSED),
        ),
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


class Full:
    """A file that takes some bytes and no more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: memoryview) -> int:
        if not self._room:
            full()
        taken = self._file.write(data[: self._room])
        self._room -= taken
        return taken

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 1, 10, 25])
def test_rows_that_do_not_fit_leave_no_part_of_themselves(room: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = JsonLines(path, 0)
    rows.append({"step": 1, "loss": 0.5})
    rows._file = Full(rows._file, room)  # type: ignore[assignment]
    with pytest.raises(OSError, match="No space left") as raised:
        rows.extend([{"step": 2, "loss": 0.25}, {"step": 2, "loss": 0.125}])
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
    rows.append({"step": 3})
    rows.close()
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_rows_survive_where_they_cannot_be_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n')

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        JsonLines(path, 1)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_tensorboard_says_that_its_disk_is_full(tmp_path: Path) -> None:
    board = Board(tmp_path / "tensorboard", 0)
    board.add({"train/loss": 0.5}, 1)

    board._writer.write_event = full
    with pytest.raises(OSError, match="No space left") as raised:
        board.add({"train/loss": 0.5}, 2)
    assert raised.value.filename == str(tmp_path / "tensorboard")


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
    assert {v.tag: v.simple_value for v in events[2].summary.value} == {
        "train/loss": 0.5,
        "train/rate": 2.0,
    }


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
