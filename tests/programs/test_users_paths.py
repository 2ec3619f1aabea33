"""Paths that users give: "~", which shells leave as it is in --flag=~/name, and what is no path."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_tools_runs import make_shards, run
from PIL import Image
from programs import assert_mistake, run_program
from tiny_clip import tiny

from clip_jax.arguments import config_with_home, local_path, with_home
from clip_jax.dataset_tools.output_files import output_file, output_folder
from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import get_templates, read_classnames


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The user's home folder; the current folder is another, and stays empty."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "home"
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("~", "HOME"),
        ("~/a/b", "HOME/a/b"),
        ("file://~/a", "HOME/a"),
        ("./~/a", "~/a"),
        ("a~", "a~"),
        ("a/~/b", "a/~/b"),
        ("/tmp/x", "/tmp/x"),
    ],
)
def test_paths(home: Path, given: str, found: str) -> None:
    assert local_path(given, "--output") == Path(found.replace("HOME", str(home)))


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~nobody_of_this_name/x", "~nobody_of_this_name is the home of no user here"),
        ("gs://bucket/x", "is a URL; give a path on this machine"),
        ("", "is not a path"),
        (" ", "is not a path"),
        ("a\0b", "is not a path"),
        (None, "must be a path"),
        (3, "must be a path"),
    ],
)
def test_what_is_no_path(path: object, message: str) -> None:
    with pytest.raises(UserError, match=f"^--output=.*{message}"):
        local_path(path, "--output")
    if isinstance(path, str) and path.startswith("~"):
        for take in (output_file, output_folder):
            with pytest.raises(UserError, match=message):
                take(path)


class PathOf:
    def __init__(self, path: str) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return self._path


@pytest.mark.parametrize("kind", [str, Path, PathOf])
def test_paths_of_clip(home: Path, kind: Callable[[str], Any]) -> None:
    clip = tiny()
    clip.save(kind("~/models/x"))
    assert (home / "models" / "x" / "config.json").is_file()
    (home / "t.txt").write_text("a {}\nthe {}\n")
    assert get_templates(kind("~/t.txt")) == ("a {}", "the {}")
    assert read_classnames(kind("~/t.txt")) == ("a {}", "the {}")
    Image.new("RGB", (32, 32), "red").save(home / "a.png")
    expected = clip.encode_image([home / "a.png"])
    np.testing.assert_array_equal(clip.encode_image([kind("~/a.png")]), expected)


@pytest.mark.parametrize("format", ["clip_jax", "huggingface", "open_clip"])
def test_where_nothing_can_be_saved(home: Path, format: str) -> None:
    clip, file = tiny(), home / "file.txt"
    file.write_text("mine")
    for directory, message in (
        ("", "is not a path"),
        ("gs://bucket/x", "is a URL; give a path on this machine"),
        ("~/file.txt", "is a file; give a new or empty folder"),
        (str(file).encode(), "is a file"),
        ("~/file.txt/below", "cannot be written"),
    ):
        with pytest.raises(UserError, match=message):
            clip.save(directory, format)  # type: ignore[arg-type]
    assert list(home.iterdir()) == [file]
    assert file.read_text() == "mine"


def test_urls_keep_their_form() -> None:
    assert with_home("gs://bucket/~x", "--data") == "gs://bucket/~x"


def test_configuration_files(home: Path) -> None:
    arguments = ["program", "--config=~/c.py:small", "-config=~/d.py", "--config.data.path=~/x"]
    expected = [f"--config={home}/c.py:small", f"-config={home}/d.py"]
    assert config_with_home(arguments) == ["program", *expected, "--config.data.path=~/x"]
    apart = ["program", "--config", "~/c.py", "~/d.py"]
    assert config_with_home(apart) == ["program", "--config", f"{home}/c.py", "~/d.py"]


def test_the_commands_of_data(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_shards(home / "shards")
    data = "--data=~/shards"
    assert run(capsys, "verify", data, "--output=~/v.json", "--workers=0").code == 0
    assert run(capsys, "hashes", data, "--output=~/h.txt", "--workers=0").code == 0
    assert run(capsys, "convert", data, "--output=~/new/shards", "--workers=0").code == 0
    assert run(capsys, "index", data, "--beside").code == 0
    assert (home / "v.json").is_file()
    assert (home / "h.txt").is_file()
    assert list((home / "new" / "shards").glob("*.tar"))
    assert list((home / "shards").glob("*.tar.index"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("clip_jax.train --config=~/own.py --workdir=~/run", "HOME/own.py: has no"),
        ("clip_jax.preflight --config=~/own.py --topology=cpu:1", "HOME/own.py: has no"),
        ("clip_jax.data inspect --config=~/own.py --output=~/p.html", "HOME/own.py: has no"),
        ("clip_jax.sweep --config=~/own.py --workdir=~/sweep", "HOME/own.py: has no"),
        ("clip_jax.report --workdir=~/run", "HOME/run"),
        ("clip_jax.convert --source=~/m --output=~/o", "HOME/m"),
    ],
)
def test_programs_name_what_is_in_the_home(home: Path, arguments: str, message: str) -> None:
    (home / "own.py").write_text("def get_config():\n    return 3\n")
    (home / "m").mkdir()
    ended = run_program(*arguments.split(), cwd=Path.cwd())
    assert_mistake(ended, message.replace("HOME", str(home)))
