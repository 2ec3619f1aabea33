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
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from places import REPOSITORY, SUPPORT
from shards import write_shards

from clip_jax.dataset_tools.output_files import write_text as write_output
from clip_jax.errors import UserError
from clip_jax.files import stores
from clip_jax.files.disk import unwritable, write_text, writing
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

    begun = time.monotonic()
    result = subprocess.run(
        [
            *(sys.executable, "-m", "clip_jax.train", f"--config={folder / 'tiny.py'}"),
            *(f"--workdir={workdir}", *flags),
        ],
        cwd=REPOSITORY,
        env=os.environ | environment,
        preexec_fn=set_limit,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert time.monotonic() - begun < 90
    return result


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


def without_model(workdir: Path) -> None:
    shutil.rmtree(workdir / "model")


def nothing(workdir: Path) -> None:
    pass


def swollen(workdir: Path) -> None:
    """Leaves room in metrics.jsonl for less than a row more, where other files have enough."""
    rows = read_rows(workdir / "metrics.jsonl")
    rows[0]["padding"] = "x" * (5900 - (workdir / "metrics.jsonl").stat().st_size)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(text)


# Place -> (the run that it begins with, what is done to it, the limit in bytes, flags, where).
Place = tuple[str | None, Callable[[Path], None], int, tuple[str, ...], str]
PLACES: dict[str, Place] = {
    "start": (None, nothing, 200, (), "/config.json: "),
    "metrics": ("half", swollen, 6000, (), "/metrics.jsonl: "),
    "checkpoint": ("half", nothing, 12_000, (), "/checkpoints/6: "),
    "export": ("whole", without_model, 30_000, (), "/model"),
    "report": ("whole", nothing, 40_000, ("--config.report=true",), "/report.html: "),
}


def begun(folder: Path, workdir: Path, place: str) -> Place:
    found = PLACES[place]
    if found[0] is not None:
        shutil.copytree(folder / found[0], workdir)
        found[1](workdir)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_limit_of_file_sizes(place: str, folder: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    _, _, limit, flags, where = begun(folder, workdir, place)
    result = start(folder, workdir, limit, *flags)
    assert_one_line(result, "File too large", where)
    assert "raise the limit of a file's size (ulimit -f); " in result.stderr
    if place != "report":
        assert GO_ON in result.stderr
    for name in ("metrics.jsonl", "evaluation.jsonl"):
        if (workdir / name).exists():  # no line is torn
            text = (workdir / name).read_text()
            assert len(read_rows(workdir / name)) == text.count("\n")
    assert_resumes(folder, workdir, *flags)


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


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_a_full_disk(place: str, folder: Path, tmp_path: Path) -> None:
    room = {"start": 0, "metrics": 8, "checkpoint": 60, "export": 40, "report": 40}[place]
    with disk(tmp_path / "small", "40m") as set_size:
        workdir = tmp_path / "small" / "run"
        if place == "metrics":  # a new run: on disks, a row more may fit into the last page
            flags, where = PLACES[place][3:]
        else:
            *_, flags, where = begun(folder, workdir, place)
        if place == "start":
            where = "/run"  # nothing at all can be made
            (tmp_path / "small" / "ballast").write_bytes(b"x" * 8192)
        set_size(f"size={used(tmp_path / 'small') + room}k")
        result = start(folder, workdir, None, *flags)
        assert_one_line(result, "No space left on device", where)
        assert "free some space; " in result.stderr
        set_size("size=40m")
        assert_resumes(folder, workdir, *PLACES[place][3])


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


def chained(*errors: BaseException) -> BaseException:
    """The last, which came from the one before it, and so on."""
    for before, after in itertools.pairwise(errors):
        after.__cause__ = before
    return errors[-1]


TENSORSTORE = (
    'RESOURCE_EXHAUSTED: Failed writing: "/r/checkpoints/6.orbax-checkpoint-tmp/rest/d/3e33":'
    " Failed to write 51656 bytes to file 17: {} [type.googleapis.com/tensorstore]\n lines"
)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/b"),
            "/a/b: cannot be written (No space left on device); free some space",
        ),
        (
            OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
            "/r: cannot be written (Disk quota exceeded); free some space",
        ),
        (
            OSError(errno.EFBIG, os.strerror(errno.EFBIG), b"/a"),
            "/a: cannot be written (File too large); raise the limit of a file's size (ulimit -f)",
        ),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "/a"),
            "/a: cannot be written (Read-only file system); give a folder that can be written",
        ),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/r/x"),
            "/r/x: cannot be written (Permission denied); give a folder that can be written",
        ),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/data/x"), None),
        (
            ValueError(TENSORSTORE.format("No space left on device")),
            "/r/checkpoints/6: cannot be written (No space left on device); free some space",
        ),
        (
            ValueError(TENSORSTORE.format("Permission denied")),
            "/r/checkpoints/6: cannot be written (Permission denied); give a folder that can be"
            " written",
        ),
        (
            chained(OSError(errno.ENOSPC, "no"), ValueError("x"), RuntimeError("handle is closed")),
            "/r: cannot be written (No space left on device); free some space",
        ),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT), "/r/x"), None),
        (ValueError("RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes"), None),
    ],
)
def test_what_is_told_of_an_error(error: BaseException, expected: str | None) -> None:
    told = unwritable(error, Path("/r"))
    assert (None if told is None else str(told)) == expected
    with pytest.raises(UserError if expected else type(error)) as raised:  # noqa: SIM117
        with writing(Path("/r"), "; then"):
            raise error
    if expected:
        assert str(raised.value) == f"{expected}; then"


def test_users_mistakes_pass() -> None:
    with pytest.raises(UserError, match=r"^mine$"), writing(Path("/r")):
        raise UserError("mine") from OSError(errno.ENOSPC, "full")


class Full:
    """A file that takes some bytes and no more."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: memoryview) -> int:
        if not self._room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
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

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match=r"metrics\.jsonl"):
        JsonLines(path, 1)
    assert path.read_bytes() == b'{"step": 1}\n{"step": 2}\n'
    assert list(tmp_path.iterdir()) == [path]


def test_tensorboard_says_that_its_disk_is_full(tmp_path: Path) -> None:
    board = Board(tmp_path / "tensorboard", 0)
    board.add({"train/loss": 0.5}, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

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


def test_a_file_is_replaced_or_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    write_text(path, "old \udcff")
    assert path.read_text() == "old ?"

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"Disk quota exceeded: '.*config\.json'"):
        write_text(path, "new")
    assert path.read_text() == "old ?"
    assert list(tmp_path.iterdir()) == [path]


def test_outputs_and_the_cache_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

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
