"""README and docs: commands and snippets run, or say why not and parse; links lead somewhere."""

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from doc_commands import PAGES, REASONS, Command, blocks, commands, make_place, run, stand_in
from flax.traverse_util import flatten_dict
from places import REPOSITORY

from clip_jax.training.config import default_config

LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)(#[^)\s]*)?\)")
SNIPPETS = [block for block in blocks() if block.language == "python"]
# A word of a snippet -> (what its page takes as given, what shows that it works).
AROUND = {
    "VIT_B": ("from clip_jax.models.architectures import VIT_B, row, text, vit", ""),
    "Rule(": ("from clip_jax.weights.rules.table import Rule", ""),
    "LOSSES[": (
        "import types",
        "perfect = types.SimpleNamespace(\n"
        "    image_embeds=jnp.eye(4), text_embeds=jnp.eye(4), logit_scale=100.0)\n"
        "assert LOSSES.pop('image_to_text').function(perfect, 'dense') < 1e-3",
    ),
    "TASKS[": (
        "import types, numpy as np",
        "embedders = types.SimpleNamespace(embed_text=lambda texts: np.ones((len(texts), 1)))\n"
        "assert TASKS.pop('synonyms').run(embedders, None)[0]['mean_cosine'] == 1",
    ),
    "def sweep": ("from clip_jax.sweep import grid", "assert len(sweep()) == 6"),
    "clip.image_features": (
        "import clip_jax\nclip = clip_jax.load('runs/quickstart')",
        "assert features.attention['transformer/blocks_0'].ndim == 4",
    ),
    "runs/lora": ("import os\nos.symlink('quickstart', 'runs/lora')", "assert clip.num_parameters"),
    "clip.classify": ("", "assert len(best) == 1"),
    "config.": (
        "from clip_jax.training.config import build_config, default_config\n"
        "config = default_config()\nconfig.steps = 1",
        "config.data.path = '' if config.data.mixture else 'photos'\nbuild_config(config)",
    ),
}
# Larger than what runs here.
SMALLER = {'"ViT-B-32", image_size=256': '"custom", image_size=64', "blocks_11": "blocks_0"}


def test_reasons_are_of_the_list() -> None:
    assert {block.reason for block in blocks()} <= {"", *REASONS}
    assert len(commands()) > 30


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: block.text[:24])
def test_python_parses(block) -> None:
    ast.parse(block.text)


@pytest.mark.parametrize("block", SNIPPETS, ids=lambda block: block.text[:24])
def test_python_runs(block, tiny_run: Path, tmp_path: Path, monkeypatch) -> None:
    if block.reason:
        pytest.skip(block.reason)
    monkeypatch.chdir(make_place(tmp_path / "place", tiny_run))
    text = block.text
    for large, small in SMALLER.items():
        text = text.replace(large, small)
    before, after = next((around for word, around in AROUND.items() if word in text), ("", ""))
    exec("\n".join([before, text, after]), {})


@pytest.mark.slow
@pytest.mark.parametrize("command", commands(), ids=lambda command: command.text[:60])
def test_commands_run(command: Command, tiny_run: Path, tmp_path: Path) -> None:
    words = stand_in(command.text)
    if command.reason:
        pytest.skip(command.reason)
    assert words[0] == "python", "a block of anything else needs a reason not to run"
    place = make_place(tmp_path / "place", tiny_run)
    if "runs/mine" in command.text and "clip_jax.train" not in words:
        (place / "runs" / "mine").symlink_to("quickstart")
    status, said = run(words, place)
    assert status == 0, said[-3000:]


@pytest.fixture(scope="module")
def help_of(tmp_path_factory) -> Callable[..., str]:
    @cache
    def told(module: str, *command: str) -> str:
        words = ["python", "-m", module, *command, "--help"]
        status, said = run(words, tmp_path_factory.mktemp("help"))
        assert status == 0, said
        return said

    return told


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.text[:60])
def test_commands_exist(command: Command, help_of: Callable[..., str]) -> None:
    words = stand_in(command.text)
    if words[0] == "make":
        makefile = (REPOSITORY / "Makefile").read_text()
        assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), words[1]
    known, own = "", words
    for at, word in enumerate(words):
        if re.match(r"(configs|benchmarks|launch|tests)/", word):
            known += (REPOSITORY / word).read_text()
            own = words[at + 1 :]
        elif word.startswith("clip_jax."):
            known += help_of(word, *words[at + 1 : at + 2] if word == "clip_jax.data" else ())
            own = words[at + 1 :]
    for script, module in (("slurm.sh", "clip_jax.train"), ("sweep.py", "clip_jax.sweep")):
        known += help_of(module) if f"launch/{script}" in words else ""
    if not known:
        return
    keys = {f"config.{key}" for key in flatten_dict(default_config().to_dict(), sep=".")}
    for word in own:
        if word.startswith("--config."):
            assert word[2:].partition("=")[0] in keys, word
    for word in own[: own.index("--")] if "--" in own else own:
        name = word.lstrip("-").partition("=")[0]
        if word.startswith("--") and not word.startswith("--config."):
            assert re.search(rf"(--(\[no\])?|\b){re.escape(name)}\b", known), word


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_no_address_of_the_repository_is_made_up() -> None:
    notebooks = (REPOSITORY / "notebooks").glob("*.ipynb")
    for page in [*PAGES, *notebooks, REPOSITORY / "setup.py"]:
        assert "github.com/clip-jax" not in page.read_text(encoding="utf-8"), page
