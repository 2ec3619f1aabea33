"""A user's mistake is told at once, in one line, and leaves everything as it was."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dataset_tools_runs import Capture, contents, make_shards, mistake, run

from clip_jax.dataset_tools.convert import plan
from clip_jax.dataset_tools.output_files import output_file, output_folder, write_text
from clip_jax.dataset_tools.program import COMMANDS
from clip_jax.errors import UserError

LONG = "x" * 300


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "command is missing; known are inspect, verify, convert, tokenizer, index, hashes"),
        ("destroy", "command 'destroy' is unknown; known are inspect, verify"),
        ("verify", "--data: is missing"),
        ("index", "--data: is missing"),
        ("verify --data=nowhere", "data path nowhere does not exist"),
        ("index --data=none.tar", "no tar file there"),
        ("verify --daat=x", "Unknown command line flag 'daat'"),
        ("verify photos", "'photos': flags only"),
        ("verify --data=x --format=zip", "'zip' is unknown; known are auto,"),
        ("verify --data=x --workers=-1", "is not a non-negative integer"),
        ("verify --data=x --output=no/folder/here.json", "must be a file in a folder"),
        ("hashes --data=x", "--output: is missing"),
        ("hashes --data=x --output=list --distance=2", "--distance=2: is for --duplicates"),
        ("inspect --data=x", "--output: is missing"),
        ("inspect --data=photos --output=o --config.tokenizer.source=nothing", "'nothing'"),
        ("inspect --data=photos --output=o --config.init.source=./nowhere", "nowhere"),
        (
            "inspect --data=broken --output=o",
            "data broken: none of 1 samples can be used (1 image_undecodable), such as 1.jpg",
        ),
        ("tokenizer --data=photos", "--output: is missing"),
        ("tokenizer --data=photos --vocab_size=20 --output=a", "vocab_size=20: accepted is >="),
        ("tokenizer --data=photos --output=broken", "is not empty and holds no tokenizer"),
        ("tokenizer --data=photos --output=gs://bucket/x", "is a URL"),
        ("tokenizer --data=photos --output=photos/00000.tar", "is a file"),
        ("verify --data=photos --config=none.py", "--config=none.py: no such file"),
        ("verify --data=photos --config=photos", "--config=photos: is no run"),
        ("verify --data=photos --config.data.pth=x", "did you mean 'config.data.path'?"),
        ("verify --data=photos --config.data.exclude_distance=x", "exclude_distance=x"),
        ("verify --config.data.format=csv", "--data: is missing"),
        ("inspect --data=photos --output=o --config.model.name=ViT", "ViT"),
    ],
)
def test_mistakes(
    words: str, message: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_shards(tmp_path / "photos")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "1.jpg").write_bytes(b"\xff\xd8")
    (tmp_path / "broken" / "1.txt").write_text("a caption")
    before = contents(tmp_path)
    assert message in mistake(capsys, *words.split())
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: Capture) -> None:
    ended = run(capsys, command, "--help")
    assert ended.code == 0
    assert f"python -m clip_jax.data {command}" in ended.out
    assert all(f"--{name}:" in ended.out for name in ("data", "format", "config", "config.KEY"))
    assert "about the program" in run(capsys, "--help").out


def closed(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Nothing can be made below `folder`, as without the right to; root has it always."""
    real_mkdir, real_write = Path.mkdir, Path.write_bytes

    def refused(path: object) -> None:
        if str(path).startswith(str(folder)):
            raise PermissionError(13, "Permission denied", str(path))

    def mkdir(self: Path, *args: object, **options: object) -> None:
        refused(self)
        real_mkdir(self, *args, **options)

    def write_bytes(self: Path, data: bytes) -> int:
        refused(self)
        return real_write(self, data)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "write_bytes", write_bytes)


@pytest.mark.parametrize("command", ["inspect", "convert", "tokenizer"])
def test_an_output_is_tried_before_the_data_is_opened(
    command: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_shards(tmp_path / "in") / "00000.tar"
    (tmp_path / "closed").mkdir()
    closed(monkeypatch, tmp_path / "closed")
    for output, said in (
        (tmp_path / "closed" / "it", "cannot be written (Permission denied)"),
        (tmp_path / LONG, "cannot be written (File name too long)"),
        (archive / "it", "cannot be written (Not a dir|must be a file in a folder that exists"),
    ):
        line = mistake(capsys, command, data=tmp_path / "nowhere", output=output)
        assert any(line.startswith(f"error: --output={output}: {end}") for end in said.split("|"))
    assert {path.name for path in tmp_path.iterdir()} == {"in", "closed"}


def test_nothing_is_left_by_the_check(tmp_path: Path) -> None:
    assert output_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert output_file(str(tmp_path / "page.html")) == tmp_path / "page.html"
    assert not list(tmp_path.iterdir())


def test_a_name_may_be_as_long_as_names_can(tmp_path: Path) -> None:
    path = tmp_path / ("y" * 255)
    assert output_file(str(path)) == path
    write_text(path, "text")
    assert contents(tmp_path) == {path.name: b"text"}
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / LONG, "text")
    assert len(list(tmp_path.iterdir())) == 1


def test_one_conversion_at_a_time_writes_a_folder(tmp_path: Path) -> None:
    (tmp_path / ".clip_jax-part-1").write_bytes(b"{")
    settings = plan.Settings("webdataset", 1, None, "keep", 95)
    assert plan.read_plan(tmp_path, settings, {}) is None, "a kill has left it, it is no data"
    with plan.locked(tmp_path):
        assert os.listdir(tmp_path) == [plan.ASIDE]
        with (
            pytest.raises(UserError, match="another conversion is writing there"),
            plan.locked(tmp_path),
        ):
            pass


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
def test_data_that_cannot_be_read(
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    path: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "closed").mkdir()

    def refusing(real: Callable[..., Any], prefix: str) -> Callable[..., Any]:
        """The tests may run as root, who may read everything."""

        def call(path: object = ".", *args: object, **options: object) -> Any:
            if str(path).startswith(prefix):
                raise PermissionError(13, "Permission denied", path)
            return real(path, *args, **options)

        return call

    access = os.access
    monkeypatch.setattr(os, "stat", refusing(os.stat, "closed/"))
    monkeypatch.setattr(os, "listdir", refusing(os.listdir, "closed"))
    monkeypatch.setattr(os, "access", lambda path, mode: path != "closed" and access(path, mode))
    said = mistake(capsys, command, data=path)
    assert path[-20:] in said
    if command == "verify":
        assert message.lower() in said.lower()
