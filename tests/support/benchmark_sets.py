"""Small evaluation sets of coloured squares, and a model that sees colours, for tests of suites."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pictures import encode
from PIL import Image
from shards import write_shard

from clip_jax.evaluation.embeddings import Embedders
from clip_jax.evaluation.suites.opening import OpenedSet
from clip_jax.evaluation.suites.running import named_row
from clip_jax.evaluation.tasks import run_task
from clip_jax.images.transform import ImageTransform

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def square(colour: str, size: tuple[int, int] = (12, 10)) -> bytes:
    return encode(Image.new("RGB", size, COLOURS[colour]), "PNG")


# A text tower that knows colours is wrong about these, until training images put it right.
WRONG_NAMES = {"blue": "red", "red": "green", "green": "blue"}


def write_noisy_squares(
    root: Path, seed: int, count: int, names: dict[str, str] = WRONG_NAMES
) -> str:
    """Squares of a colour in the folder of its class; a fifth of them have another's colour."""
    draw = np.random.default_rng(seed)
    for name, colour in names.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            seen = colour if number % 5 else "red"
            pixels = np.asarray(COLOURS[seen]) * 0.5 + draw.uniform(0, 90, (8, 8, 3))
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            (root / name / f"{number}.png").write_bytes(encode(image, "PNG"))
    return str(root)


def _embed_image(images: np.ndarray) -> np.ndarray:
    mean = images.reshape(len(images), -1, 3).mean(axis=1).astype(np.float32) + 1
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _embed_text(texts: list[str]) -> np.ndarray:
    rows = []
    for text in texts:
        row = np.ones(3) + sum(np.asarray(c) * (name in text) for name, c in COLOURS.items())
        rows.append(row / np.linalg.norm(row))
    return np.asarray(rows, np.float32)


# Right for every caption or class that names the colour of its square.
SEEING = Embedders(_embed_image, _embed_text, ImageTransform(image_size=8))


def evaluated_rows(embedders: Embedders, opened: OpenedSet) -> list[dict[str, Any]]:
    """The rows of a set."""
    return [named_row(opened, row) for row in run_task(opened.set.kind, embedders, opened.data)]


def npy(*values: float) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def write_layout(
    root: Path,
    samples: Sequence[dict[str, bytes]],
    names: Sequence[str] = (),
    templates: Sequence[str] = (),
    kind: str = "",
    split: str = "test",
) -> Path:
    """clip-benchmark's layout: two tars of members by ending, and the files beside."""
    for number, part in enumerate((samples[::2], samples[1::2])):
        content = [(f"s{number}{index:06d}", members) for index, members in enumerate(part)]
        write_shard(root / split / f"{number}.tar", content)
    (root / split / "nshards.txt").write_text("2\n")
    files = {
        "classnames.txt": "\n".join(names),
        "zeroshot_classification_templates.txt": "\n".join(templates),
        "dataset_type.txt": kind,
    }
    for name, text in files.items():
        if text:
            (root / name).write_text(f"{text}\n")
    return root


def classified(*colours: str) -> list[dict[str, bytes]]:
    """Squares with the number of their colour, in the order of `COLOURS`."""
    numbers = {name: number for number, name in enumerate(COLOURS)}
    return [{"png": square(colour), "cls": str(numbers[colour]).encode()} for colour in colours]


def captioned(*colours: str) -> list[dict[str, bytes]]:
    """Squares with two captions, a line each."""
    return [{"png": square(c), "txt": f"a {c} square\none of {c}".encode()} for c in colours]
