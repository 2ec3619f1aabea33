"""How programs begin and end."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY

from clip_jax import command_line
from clip_jax.errors import UserError, one_line


def raising(error: BaseException) -> None:
    raise error


def test_ends(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_line, "_parse", lambda argv: None)
    ends = {
        130: (KeyboardInterrupt(), "\nstopped here\n"),
        2: (UserError("key=3:\n must be 4"), "error: key=3: must be 4\n"),
    }
    for code, (error, line) in ends.items():
        with pytest.raises(SystemExit) as ended:
            command_line.run(lambda error=error: raising(error), ["program"], "stopped here")
        assert ended.value.code == code
        assert capsys.readouterr().err == line


def test_a_pipe_that_is_closed_and_a_full_output(tmp_path: Path) -> None:
    code = (
        "from clip_jax import command_line\n"
        "def main():\n    for n in range(100000): print(n)\n"
        "command_line.run(main, ['program'])"
    )
    python = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}"
    closed = subprocess.run(["bash", "-c", f"{python} | head -1"], capture_output=True, text=True)
    assert (closed.stdout, closed.stderr) == ("0\n", "")
    if Path("/dev/full").exists():
        full = subprocess.run(
            ["bash", "-c", f"{python} > /dev/full"], capture_output=True, text=True
        )
        assert full.returncode == 2
        assert full.stderr.startswith("error: the output: cannot be written (No space left")


def test_a_result_on_a_full_disk_leaves_the_one_before(tmp_path: Path) -> None:
    old = tmp_path / "result.json"
    old.write_text("{}")
    code = (
        "import resource\nfrom pathlib import Path\n"
        "from clip_jax import command_line\nfrom clip_jax.files import disk\n"
        "def main():\n    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        f"    with disk.telling('--output=x'): disk.write_text(Path({str(old)!r}), 'a' * 1000)\n"
        "command_line.run(main, ['program'])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --output=x: cannot be written (File too large); raise")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("result.json", "{}")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\n  lines", "two lines"),
        ("one two three", "one two…"),
        ("one two, three", "one two…"),
        ("nine more than that", "nine more…"),
        ("onetwothreefour", "onetwothr…"),
        ("ten letter", "ten letter"),
        ("", "ValueError"),
    ],
)
def test_messages_are_cut_between_words(text: str, expected: str) -> None:
    assert one_line(ValueError(text), 10) == expected


def test_evaluations_as_flags() -> None:
    file = str(REPOSITORY / "configs" / "quickstart.py")
    group = {"task": "zero_shot", "data": {"path": "photos/test"}}
    whole = command_line.read_config(file, [f"--config.evaluations=({group},)"])
    assert whole.evaluations == (group,)
    one = command_line.read_config(file, ["--config.evaluations[1].every_steps=5"])
    assert [each["every_steps"] for each in one.evaluations] == [700, 5]
    with pytest.raises(UserError, match=r"config\.evaluations\[7\]\.task: the file has no such"):
        command_line.read_config(file, ["--config.evaluations[7].task=x"])
    with pytest.raises(UserError, match=r"unknown key 'config\.evaluation\.tasks'; did you mean"):
        command_line.read_config(file, ["--config.evaluation.tasks=('x',)"])
