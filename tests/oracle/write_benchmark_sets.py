"""Writes three small sets by clip-benchmark's own code into a folder, in its layout.

.oracle/bin/python tests/oracle/write_benchmark_sets.py FOLDER
"""

import sys
import types

import torch
import torchvision_shim  # noqa: F401 (first of all)
from PIL import Image

sys.modules.setdefault("requests", types.ModuleType("requests"))  # for downloads, of which none is
from clip_benchmark.webdataset_builder import (  # noqa: E402
    PIL_to_bytes,
    convert_dataset,
    convert_retrieval_dataset,
)

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


class Squares(torch.utils.data.Dataset):
    """Seven squares of colours in turn, with a class, several classes, or captions."""

    classes = tuple(COLOURS)
    templates = ("a photo of a {c}.", "a {c} thing.")

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int):
        name = self.classes[index % 3]
        labels = {
            "hues": index % 3,
            "many": torch.tensor([float(index % 3 == 0), 1.0, 0.0]),
            "pairs": [f"a {name} square", f"one, {name}"],
        }
        return Image.new("RGB", (12, 10), COLOURS[name]), labels[self.kind]


def main(folder: str) -> None:
    for kind in ("hues", "many", "pairs"):
        ending = "webp" if kind == "pairs" else "png"
        options = {"transform": PIL_to_bytes(ending), "image_format": ending, "max_count": 3}
        if kind == "pairs":
            convert_retrieval_dataset(Squares(kind), "test", f"{folder}/{kind}", **options)
        else:
            options["multilabel"] = kind == "many"
            convert_dataset(Squares(kind), "test", f"{folder}/{kind}", **options)


if __name__ == "__main__":
    main(sys.argv[1])
