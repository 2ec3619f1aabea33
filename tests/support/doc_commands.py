"""The commands and snippets of README and docs, and a place to run them in.

A block of code that cannot run here has one of `REASONS` in an HTML comment on the line before it.
"""

import json
import os
import re
import shlex
import shutil
import tarfile
from pathlib import Path
from typing import NamedTuple

from pictures import encode, photo
from places import REPOSITORY, SUPPORT
from programs import run_python

from clip_jax.dataset_tools.program import COMMANDS

PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "launch" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
REASONS = ("needs a download", "needs a cluster", "needs a TPU", "takes hours")
BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n+)?^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Text of a page -> what it is here, where photos, shards and runs/quickstart are.
STAND_INS = {
    ".venv/bin/": "",
    "evaluate --tasks=zero_shot": "evaluate --model=RUN --data=photos/test --tasks=zero_shot",
    "clip_jax.report --workdir=DIR": "clip_jax.report --workdir=runs/quickstart",
    "--workdir=DIR": "--workdir=runs/new",
    "--output=DIR": "--output=out",
    "=DIR": "=runs/quickstart",
    "=RUN": "=runs/quickstart",
    "=SRC": "=runs/quickstart",
    "downloads/ViT-B-32.pt": "runs/quickstart",
    "configs/X.py --topology": "configs/openai_vit_l14.py --topology",
    # The same program as launch/sweep.py, which runs one.
    "clip_jax.sweep --config=configs/X.py": "clip_jax.sweep --mode=print --config=configs/X.py",
    "configs/X.py": "configs/quickstart.py",
    "--config=…": "--config=configs/quickstart.py",
    "--topology=…": "--config=configs/openai_vit_l14.py --topology=cpu:8",
    "FOLDER_OR_CSV_OR_TARS": "photos",
    "--tasks=zero_shot,retrieval --data=…": "--tasks=zero_shot,retrieval --data=photos/test",
    "--data=…": "--data=photos",
    "'*.tar'": "'shards/*.tar'",
    "--config.steps=500": "--config.steps=2",
}
# A configuration as it is, but for the size of the model and of the run.
CONFIG = """
from runpy import run_path
from tiny import tiny_config

REAL = run_path({path!r})


def get_config():
    config, tiny = REAL["get_config"](), tiny_config()
    config.model, config.steps, config.epochs = tiny.model, 3, tiny.epochs
    if config.batch_size < 1000:  # the others are for slices
        config.batch_size = 8
    return config


def sweep():
    return REAL["sweep"]()[:1]
"""


class Block(NamedTuple):
    """A block of code of a page."""

    page: Path
    reason: str  # why it is not run, or empty
    language: str
    text: str


class Command(NamedTuple):
    """A command of a page, as it stands there."""

    reason: str
    text: str


def blocks() -> list[Block]:
    return [
        Block(page, *found)
        for page in PAGES
        for found in BLOCK.findall(page.read_text(encoding="utf-8"))
    ]


def commands() -> list[Command]:
    """The commands of all pages, each once: of blocks of bash, and those in a line of text."""
    found = []
    for block in blocks():
        if block.language == "bash":
            lines = block.text.replace("\\\n", " ").splitlines()
            found += [Command(block.reason, line) for line in lines if shlex.split(line, True)]
    for page in PAGES:
        text = BLOCK.sub("", page.read_text(encoding="utf-8"))
        for span in re.findall(r"`([^`]+)`", text):
            span = " ".join(span.split())
            if span.startswith("python ") and "/" in span.partition(" -")[0]:
                found.append(Command("takes hours", span))  # a program of benchmarks/
            elif span.startswith("python ") and " --" in span:
                found.append(Command("", span))
            elif span.partition(" --")[0] in COMMANDS and "=" in span:
                found.append(Command("", f"python -m clip_jax.data {span}"))
    return [*{" ".join(stand_in(command.text)): command for command in found}.values()]


def stand_in(text: str) -> list[str]:
    """The words of a command as it is run here."""
    for theirs, ours in STAND_INS.items():
        text = text.replace(theirs, ours)
    return shlex.split(re.sub(r"[][]", "", text), comments=True)


def make_place(folder: Path, run: Path) -> Path:
    """Fills a folder with what a reader of the pages has: a clone, data, a trained run."""
    (folder / "configs").mkdir(parents=True)
    for path in (REPOSITORY / "configs").glob("*.py"):
        (folder / "configs" / path.name).write_text(CONFIG.format(path=str(path)))
    for name in ("launch", "benchmarks", "tests"):
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copytree(run, folder / "runs" / "quickstart")
    table = []
    for number in range(10):
        label, image = ("cat", "dog")[number % 2], encode(photo(20 + number, 16, number), "PNG")
        caption = f"a {label}, number {number}"
        for place in (f"photos/test/{label}", "grocery/test", "members"):
            (folder / place).mkdir(parents=True, exist_ok=True)
            (folder / place / f"{number}.png").write_bytes(image)
            if place != "grocery/test":
                (folder / place / f"{number}.txt").write_text(caption)
        row = {"file_name": f"{number}.png", "text": caption, "class_id": number % 2}
        table.append(json.dumps(row) + "\n")
        for split, first in (("train", 200), ("validation", 100)):
            other = folder / "photos" / split / label
            other.mkdir(parents=True, exist_ok=True)
            picture = encode(photo(20, 16, first + number), "PNG")
            (other / f"{number}.png").write_bytes(picture)
            (other / f"{number}.txt").write_text(caption)
    (folder / "candidates.txt").write_text("a {}\na photo of a {}\n")
    (folder / "described.json").write_text('{"cat": ["whiskers"], "dog": ["a wet nose"]}')
    (folder / "grocery" / "test" / "metadata.jsonl").write_text("".join(table))
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "00000.tar", "w") as archive:
        for path in sorted((folder / "members").iterdir()):
            archive.add(path, path.name)
    (folder / "grocery" / "classnames.txt").write_text("cat\ndog\n")
    for name in ("a.png", "b.png", "photo.jpg"):
        (folder / name).write_bytes(encode(photo(40, 30), "PNG"))
    return folder


def run(words: list[str], folder: Path) -> tuple[int, str]:
    """Runs `python …`; returns its exit status and output."""
    path = os.pathsep.join([str(REPOSITORY), str(SUPPORT)])
    ended = run_python(words[1:], folder, {"PYTHONPATH": path})
    return ended.returncode, ended.stdout + ended.stderr
