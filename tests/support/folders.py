"""Folders of images with tables of captions, for the tests of sources."""

import json
from pathlib import Path
from typing import Any

from shards import png
from small_sets import write

from clip_jax.data.sources import open_source

REAL = ["real caption 0", "real caption 1", "real caption 2"]


def lay(folder: Path, *names: str) -> None:
    """Writes images: three into a folder, or those named."""
    for name in names:
        is_image = name.lower().endswith((".png", ".jpg", ".jpeg"))
        images = [name] if is_image else [f"{name}/{n}.png" for n in range(3)]
        for number, image in enumerate(images):
            write(folder / image, png(number))


def json_lines(*, image: str = "file_name", caption: str = "text") -> str:
    rows = ({image: f"{n}.png", caption: text} for n, text in enumerate(REAL))
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(delimiter: str = ",", head: str = "file_name,text") -> str:
    rows = [head, *(f"{n}.png,{text}" for n, text in enumerate(REAL))]
    return "".join(row.replace(",", delimiter) + "\n" for row in rows)


def opened(path: Path, **options: Any) -> dict[str, tuple[str, ...]]:
    source = open_source(path, **options)
    for index in range(len(source)):
        assert source[index].image
        assert source.key(index - len(source)) == source.key(index) == source[index].key
    return {source.key(index): source.captions(index) for index in range(len(source))}


def classes(path: Path, **options: Any) -> dict[str, Any]:
    source = open_source(path, needs_captions=False, label_column="class", **options)
    assert source.dropped.total == 0
    return {source.key(n): source.metadata(n).get("class") for n in range(len(source))}
