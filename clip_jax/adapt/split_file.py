"""CoOp's files of splits, `split_zhou_*.json` (Zhou et al. 2022).

{"train": [[path, label, class name], …], "val": […], "test": […]}, with paths below a folder.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from clip_jax.adapt.parts import Part
from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Record
from clip_jax.data.sources.base import BaseSource, hash_of
from clip_jax.data.sources.columns import check_images_exist, read_image
from clip_jax.errors import UserError
from clip_jax.evaluation.labels import Labels
from clip_jax.evaluation.prompts.published import ClassNames

FLAG = "--split_file"
PURPOSES = ("train", "val", "test")


class Row(NamedTuple):
    """An image of the file."""

    path: str
    label: int
    name: str


class ListedImages(BaseSource):
    """Images below a folder that a file lists, with the name of their class as caption."""

    def __init__(self, rows: Sequence[Row], folder: str, where: str) -> None:
        """Raises UserError if none of the first images exists."""
        super().__init__(SourceOptions())
        self._rows, self._folder = rows, folder
        check_images_exist(where, folder, (row.path for row in rows))
        self.fingerprint = hash_of(self)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        image = read_image(self._folder, self.key(index), self._options.remote)
        return Record(self.key(index), image, self.captions(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return (self._rows[index].name,)

    def metadata(self, index: int) -> dict[str, Any]:
        return {"label": self._rows[index].name}

    def key(self, index: int) -> str:
        return self._rows[index].path


def read_split_file(path: Path, folder: str) -> tuple[Part, Part]:
    """Reads the images to train and validate, and those to test; classes are in the file's order.

    Raises UserError: the file cannot be read or has another layout, labels and names contradict
    each other, an image is in two parts, or none is in the folder.
    """
    where = f"{FLAG}={path}"
    parts = _read(path, where)
    names: dict[int, str] = {}
    seen: dict[str, str] = {}
    for purpose, rows in parts.items():
        for row in rows:
            if names.setdefault(row.label, row.name) != row.name:
                raise UserError(
                    f"{where}: class {row.label} is {names[row.label]!r}, and {row.name!r} in"
                    f" {purpose} ({row.path}); accepted is one name a class"
                )
            if seen.setdefault(row.path, purpose) != purpose:
                raise UserError(f"{where}: {row.path} is in {seen[row.path]} and in {purpose}")
    if sorted(names) != list(range(len(names))):
        raise UserError(f"{where}: has classes {min(names)} to {max(names)} but {len(names)} names")
    spoken = [names[number].replace("_", " ") for number in range(len(names))]
    classes = tuple(ClassNames(name, (name,)) for name in spoken)

    def part(rows: list[Row]) -> Part:
        numbers = np.array([row.label for row in rows], np.int64)
        labels = Labels(numbers, classes, "numbers", 0)
        return Part(ListedImages(rows, folder, where), labels)

    learned = [*parts["train"], *parts["val"]]
    validates = np.arange(len(learned)) >= len(parts["train"])
    return part(learned)._replace(validates=validates), part(parts["test"])


def _read(path: Path, where: str) -> dict[str, list[Row]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read ({error})") from error
    parts = {}
    for purpose in PURPOSES:
        rows = found.get(purpose) if isinstance(found, dict) else None
        if not isinstance(rows, list) or not rows:
            needed = ", ".join(PURPOSES)
            raise UserError(f"{where}: has no images in {purpose!r}; needed are {needed}")
        parts[purpose] = [_row(row, f"{where}: {purpose}[{n}]") for n, row in enumerate(rows)]
    return parts


def _row(row: Any, where: str) -> Row:
    match row:
        case [str(path), int(label), str(name)] if label >= 0:
            return Row(path, label, name)
    raise UserError(f"{where} is {str(row)[:60]}; accepted is [path, label, class name]")
