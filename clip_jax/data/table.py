"""A CSV or TSV file of image paths and captions."""

import csv
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Drops, Record, fingerprint_of, read_file
from clip_jax.errors import UserError

IMAGE_COLUMNS = ("image", "filepath", "path", "file_name", "filename", "image_path")
CAPTION_COLUMNS = ("caption", "title", "text")

_PROBED_ROWS = 20  # how many of the first images are looked for before anything is trained


class TableSource:
    """Rows (image path, caption, anything else); relative paths are relative to the file.

    Rows with the same image are one record with several captions. The other columns, from the
    image's first row, are its metadata. The key is the path as the file has it.

    Args:
      path: UTF-8, with a header line. `.tsv` is split at tabs; otherwise the delimiter is the one
        of `,` tab `;` `|` that the header has most of.
      image_column, caption_column: names in the header; by default the first known one
        (`IMAGE_COLUMNS`, `CAPTION_COLUMNS`), upper or lower case.

    Raises:
      UserError: file missing, not UTF-8, a column missing, no usable row, or none of the first
        images on disk.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        image_column, caption_column = options.image_column, options.caption_column
        self._path = Path(path)
        if not self._path.is_file():
            raise UserError(f"data path {path} is not a file; give an existing .csv or .tsv file")
        self._keys: list[str] = []
        self._captions: list[tuple[str, ...]] = []
        self._metadata: list[dict[str, Any]] = []
        self.dropped = Drops()
        try:
            with open(self._path, encoding="utf-8-sig", newline="") as file:
                delimiter = _delimiter(self._path, file.readline())
                file.seek(0)
                self._read(csv.reader(file, delimiter=delimiter), image_column, caption_column)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 ({error.reason}); save it as UTF-8") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except csv.Error as error:
            raise UserError(f"{path} is not a readable table: {error}") from None
        if not self._keys:
            raise UserError(f"{path} has no row with an image and a caption; give at least one")
        self._probe()
        self.fingerprint = fingerprint_of(zip(self._keys, self._captions, strict=True))

    def _read(
        self, rows: Iterator[list[str]], image_column: str | None, caption_column: str | None
    ) -> None:
        header = [name.strip() for name in next(rows, [])]
        image_at = _column(self._path, header, image_column, IMAGE_COLUMNS, "image_column")
        caption_at = _column(self._path, header, caption_column, CAPTION_COLUMNS, "caption_column")
        captions: dict[str, list[str]] = {}
        metadata: dict[str, dict[str, Any]] = {}
        for number, row in enumerate(rows, start=2):
            if not row:
                continue
            if len(row) <= max(image_at, caption_at):
                reason = f"{len(row)} of {len(header)} columns"
                self.dropped.add("row_malformed", f"row {number}", reason)
                continue
            image, caption = row[image_at].strip(), row[caption_at]
            if not image or not caption.strip():
                missing = (
                    ("image_missing", "image path") if not image else ("caption_empty", "caption")
                )
                self.dropped.add(missing[0], f"row {number}", f"{missing[1]} is empty")
                continue
            captions.setdefault(image, []).append(caption)
            if image not in metadata:
                metadata[image] = {
                    name: value
                    for at, (name, value) in enumerate(zip(header, row, strict=False))
                    if at not in (image_at, caption_at)
                }
        self._keys = list(captions)
        self._captions = [tuple(captions[key]) for key in self._keys]
        self._metadata = [metadata[key] for key in self._keys]

    def _probe(self) -> None:
        """A wrong folder should be one clear line now, not a thousand unreadable images later."""
        if any(self._file(key).is_file() for key in islice(self._keys, _PROBED_ROWS)):
            return
        first = self._keys[0]
        hint = (
            "download the images first; the column must hold local paths"
            if "://" in first
            else f"relative paths are relative to {self._path.parent}"
        )
        raise UserError(
            f"{self._path}: none of its first images exists (such as {self._file(first)}); {hint}"
        )

    def _file(self, key: str) -> Path:
        return self._path.parent / key

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Record:
        key = self._keys[index]
        image = read_file(self._file(key))
        return Record(key, image, self._captions[index])

    def captions(self, index: int) -> tuple[str, ...]:
        return self._captions[index]

    def metadata(self, index: int) -> dict[str, Any]:
        return self._metadata[index]

    def key(self, index: int) -> str:
        return self._keys[index]


def _delimiter(path: Path, header: str) -> str:
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max((",", "\t", ";", "|"), key=header.count)


def _column(
    path: Path, header: Sequence[str], given: str | None, known: Sequence[str], option: str
) -> int:
    """Index of the column, by its given name or by the first known one."""
    lowered = [name.lower() for name in header]
    for name in (given,) if given is not None else known:
        if name in header:
            return header.index(name)
        if name.lower() in lowered:
            return lowered.index(name.lower())
    wanted = f"no column {given!r}" if given is not None else f"none of {', '.join(known)}"
    raise UserError(
        f"{path} has {wanted}; its columns are: {', '.join(header) or '(none)'};"
        f" name one with {option}"
    )
