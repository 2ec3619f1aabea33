"""Rows of an evaluation in a folder, each written as soon as it is there, so that a run that was
stopped goes on with what is missing."""

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.errors import UserError
from clip_jax.files.disk import replacing, telling, write_text

Row = dict[str, Any]
Samples = Mapping[str, np.ndarray]

# Rows that agree in all of these are the same, and are not computed twice.
IDENTITY = ("model_hash", "task", "dataset", "split", "data_hash", "prompts_hash", "settings_hash")


class Results:
    """Folder with results.json, results.csv, and samples/, the arrays behind each row.

    Without a folder, the rows alone are kept, in memory.
    """

    def __init__(self, folder: Path | None) -> None:
        """Opens a folder, which need not exist. Raises UserError if its rows cannot be read."""
        self.folder = folder
        self.rows: list[Row] = []
        if folder is None:
            return
        path = folder / "results.json"
        try:
            if path.exists():
                self.rows = json.loads(path.read_text(encoding="utf-8"))["results"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: is damaged ({error}); remove it") from error

    def find(self, identity: Mapping[str, Any]) -> list[Row]:
        """Returns the finished rows that agree with all of `identity`."""
        # A failure has no hashes and is none of them.
        return [row for row in self.rows if all(row.get(k) == v for k, v in identity.items())]

    def add(self, rows: Sequence[tuple[Row, Samples]]) -> None:
        """Adds rows with their arrays, in place of earlier ones of the same identity."""
        new = [row for row, _ in rows]
        same = [_identity(row) for row in new]
        kept = [row for row in self.rows if _identity(row) not in same]
        # An error has no hashes if the data could not be opened; whatever follows replaces it.
        names = [(row["model"], row["task"], row["dataset"]) for row in new]
        kept = [
            row
            for row in kept
            if "error" not in row or (row["model"], row["task"], row["dataset"]) not in names
        ]
        self.rows = [*kept, *new]
        if self.folder is None:
            return
        with telling(str(self.folder)):
            (self.folder / "samples").mkdir(parents=True, exist_ok=True)
            for row, samples in rows:
                if samples:
                    with (
                        replacing(self._samples(self.folder, row)) as aside,
                        open(aside, "wb") as file,
                    ):
                        np.savez_compressed(file, allow_pickle=False, **samples)
            write_text(self.folder / "results.json", results_json(self.rows))
            write_text(self.folder / "results.csv", results_csv(self.rows))

    def samples(self, row: Row) -> dict[str, np.ndarray]:
        """Returns the arrays behind a row; empty if it has none."""
        path = None if self.folder is None else self._samples(self.folder, row)
        if path is None or not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)

    def _samples(self, folder: Path, row: Row) -> Path:
        words = json.dumps([row.get(key) for key in IDENTITY])
        return folder / "samples" / f"{hashlib.sha256(words.encode()).hexdigest()[:24]}.npz"


def _identity(row: Row) -> list[Any]:
    return [row.get(key) for key in ("model", *IDENTITY)]


def results_json(rows: Sequence[Row]) -> str:
    """Rows as the text of a JSON file; `model` is the only one, or all of them."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    model = models[0] if len(models) == 1 else models
    return json.dumps({"model": model, "results": list(rows)}, indent=1) + "\n"


def results_csv(rows: Sequence[Row]) -> str:
    """Rows as the text of a CSV file, with a column for each key of any row."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
