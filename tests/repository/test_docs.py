"""README and docs: code runs or parses, commands and their flags exist, links lead somewhere."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from flax.traverse_util import flatten_dict
from PIL import Image
from places import REPOSITORY

from clip_jax.training.config import default_config

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "launch" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)(#[^)\s]*)?\)")


def blocks(language: str) -> list[tuple[str, str]]:
    """(page and number, text) of each block of code."""
    return [
        (f"{page.name}-{number}", text)
        for page in PAGES
        for number, (kind, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")))
        if kind == language
    ]


def commands() -> list[list[str]]:
    """The words of each command in a block of bash, comments left out."""
    found = []
    for _, text in blocks("bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(words)
    return found


@cache
def help_of(module: str, command: str = "") -> str:
    arguments = [sys.executable, "-m", module, *([command] if command else []), "--help"]
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("where", "text"), blocks("python"), ids=lambda value: value[:24])
def test_python_parses(where: str, text: str) -> None:
    ast.parse(text)


@pytest.mark.parametrize("page", [REPOSITORY / "README.md", REPOSITORY / "docs" / "use.md"])
def test_using_a_model_runs_as_written(
    page: Path, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = BLOCK.findall(page.read_text(encoding="utf-8"))
    text = next(text for kind, text in texts if kind == "python" and "clip.classify" in text)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        Image.new("RGB", (40, 30)).save(f"{name}.png")
    # A model of 150 million parameters says no more here than a name that exists.
    text = text.replace('clip_jax.create("ViT-B-32", image_size=256)', "clip_jax.list_models()")
    names: dict[str, object] = {}
    exec(text, names)
    assert len(names["best"]) == 1  # type: ignore[arg-type]
    assert (tmp_path / "exported" / "config.json").is_file()


def test_there_are_commands() -> None:
    assert len(commands()) > 15


@pytest.mark.parametrize("words", commands(), ids=lambda words: " ".join(words)[:60])
def test_commands_exist(words: list[str]) -> None:
    for word in words:
        for path in re.findall(r"(?:configs|benchmarks|launch|tests)/\w+\.(?:py|sh)", word):
            if not path.endswith("/X.py"):
                assert (REPOSITORY / path).is_file(), path
    if words[0] == "make":
        makefile = (REPOSITORY / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words[1]
    if "-m" not in words or not words[words.index("-m") + 1].startswith("clip_jax"):
        return
    at = words.index("-m") + 1
    module, rest = words[at], words[at + 1 :]
    command = rest[0] if module == "clip_jax.data" else ""
    keys = {f"config.{key}" for key in flatten_dict(default_config().to_dict(), sep=".")}
    own = rest[: rest.index("--")] if "--" in rest else rest
    known = help_of(module, command)
    for word in rest:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("--config."):
            assert name in keys, word
        elif word.startswith("--") and word != "--" and word in own:
            assert re.search(rf"--(\[no\])?{re.escape(name)}\b", known), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_no_address_of_the_repository_is_made_up() -> None:
    for page in [*PAGES, REPOSITORY / "notebooks" / "quickstart.ipynb", REPOSITORY / "setup.py"]:
        assert "github.com/clip-jax" not in page.read_text(encoding="utf-8"), page
