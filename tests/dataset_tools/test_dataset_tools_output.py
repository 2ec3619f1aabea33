"""A place that cannot be written is a mistake told at once, in one line, and left as it was."""

from pathlib import Path

import pytest
from dataset_tools_runs import contents, make_shards, mistake

from clip_jax.dataset_tools import tokenizer
from clip_jax.dataset_tools.convert import command as convert
from clip_jax.dataset_tools.convert.plan import Settings, read_plan
from clip_jax.dataset_tools.inspect import command as inspect
from clip_jax.dataset_tools.output_files import output_file, output_folder, write_text
from clip_jax.errors import UserError

COMMANDS = {"inspect": inspect, "convert": convert, "tokenizer": tokenizer}
LONG = "x" * 300


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


@pytest.mark.parametrize("command", COMMANDS)
def test_told_before_the_data_is_opened(
    command: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = make_shards(tmp_path / "in")
    room = tmp_path / "closed"
    room.mkdir()

    def opened(*_: object) -> None:
        raise AssertionError("the data was opened first")

    monkeypatch.setattr(type(COMMANDS[command]._DATA), "open", opened)
    closed(monkeypatch, room)
    for output, said in (
        (room / "it", "cannot be written (Permission denied)"),
        (tmp_path / LONG, "cannot be written (File name too long)"),
        (data / "00000.tar" / "it", "cannot be written (Not a directory)"),
    ):
        line = mistake(capsys, command, f"--data={data}", f"--output={output}")
        assert line.startswith(f"error: --output={output}: {said}")
    assert {path.name for path in tmp_path.iterdir()} == {"in", "closed"}


def test_nothing_is_left_by_the_check(tmp_path: Path) -> None:
    assert output_folder(str(tmp_path / "a" / "b"), "it") == tmp_path / "a" / "b"
    assert output_file(str(tmp_path / "page.html")) == tmp_path / "page.html"
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="must be a file in a folder that exists"):
        output_file(str(tmp_path / "none" / "page.html"))


def test_a_name_may_be_as_long_as_names_can(tmp_path: Path) -> None:
    path = tmp_path / ("y" * 255)
    assert output_file(str(path)) == path
    write_text(path, "text")
    assert contents(tmp_path) == {path.name: b"text"}
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / LONG, "text")
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_kill_has_left_is_no_other_data(tmp_path: Path) -> None:
    (tmp_path / ".clip_jax-part-1").write_bytes(b"{")
    assert read_plan(tmp_path, Settings("webdataset", 1, None, None, "keep", 95), "0", None) is None


def test_numbers_out_of_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, output = make_shards(tmp_path / "in"), tmp_path / "out"
    for value in ("nan", "inf"):
        line = mistake(
            capsys, "convert", f"--data={data}", f"--output={output}", f"--shard_mb={value}"
        )
        assert f"--shard_mb={value}: must be a finite number" in line
    line = mistake(capsys, "inspect", f"--data={data}", f"--output={output}", "--image_size=100000")
    assert "image_size" in line
    assert "4096" in line
    assert not output.exists()
