"""Rows that name image files: the base of the CSV and JSON-lines sources."""

import math
import os
import re
import unicodedata
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import CaptionError, Drops, Record, fingerprint_of
from clip_jax.data.sources.columns import (
    captions_of,
    check_images_exist,
    find_label_column,
    image_place,
    local_copy,
    read_image,
    texts_of,
    weighted,
    with_label,
)
from clip_jax.data.sources.record_store import GatheringStore
from clip_jax.data.sources.splits import files_of_split
from clip_jax.errors import UserError
from clip_jax.files.patterns import expand_paths, has_ending, is_remote

_LOOKED_AT_RECORDS = 20  # of each file, when images are looked for
_NUMBER = re.compile(r"[+-]?\d{1,18}(\.0*)?", re.ASCII)
_UNLABELLED = -1


class ImageRows:
    """Collector of rows (image path, captions, the rest), which makes one record of each image.

    Attributes:
      store: the records, in the order of their first rows.
      files: for each record, the number of the file with its first row.
    """

    def __init__(self, paths: Sequence[str], options: SourceOptions) -> None:
        self._paths = paths
        self._options = options
        self._by_folder: dict[str, dict[str, int]] = {}  # folder -> image -> record
        self.begin(0)
        self.files = array("L")
        self._labels: list[Any] = []  # one per record, if labels are wanted
        self.later_labels: dict[int, Any] = {}  # record -> label, if its first row has none
        self.store = GatheringStore()
        self.dropped = Drops(options.listed_drops)

    def begin(self, file: int) -> None:
        """Starts the rows of a file."""
        self.file = file
        # The same relative path in another folder is another image.
        self._seen = self._by_folder.setdefault(os.path.dirname(self._paths[file]), {})

    def drop(self, kind: str, row: str, reason: str) -> None:
        """Drops a row; `row` is its name in its file."""
        if len(self._paths) > 1:
            row = f"{os.path.basename(self._paths[self.file])} {row}"
        self.dropped.add(kind, row, reason)

    def add(self, row: str, image: Any, cells: Sequence[Any], rest: str, label: Any = None) -> None:
        """Adds a row, or drops it under the name `row`.

        An image's `rest` comes from its first row, and its `label` from the first row with one. A
        later row with a different label is dropped; one without a label is not.
        """
        if image is None or (isinstance(image, str) and not image.strip()):
            self.drop("image_missing", row, "image path is empty")
            return
        try:
            if not isinstance(image, str) or "\0" in image or not image.encode():
                raise ValueError
        except ValueError:  # also a lone surrogate
            reason = f"image is {type(image).__name__} {str(image)[:40]!r}, not a path"
            self.drop("row_malformed", row, reason)
            return
        try:
            texts = [texts_of(cell) for cell in cells]
            weighted(texts, cells, self._options)
        except CaptionError as error:
            if self._options.needs_captions:
                self.drop(error.kind, row, str(error))
                return
            texts = []
        record = self._record(image.strip(), rest, label)
        if record is None:
            first = self._labels[self._seen[image.strip()]]
            reason = f"label {label!r} where the image's first row has {first!r}"
            self.drop("row_malformed", row, reason)
            return
        self.dropped.kept_rows += 1
        weights = self._options.caption_weights
        for column, found in enumerate(texts):
            for text in found if not weights or weights[column] > 0 else ():
                self.store.add_caption(record, column, text)

    def _record(self, image: str, rest: str, label: Any) -> int | None:
        """Returns the number of the image's record, new or known; None if the labels differ."""
        new = len(self.files)
        record = self._seen.setdefault(image, new)
        if record == new:
            self.store.keys.append(image)
            self.store.rest.append(rest)
            self.files.append(self.file)
            if self._options.label_column is not None:
                self._labels.append(label)
        elif self._options.label_column is not None and (meaning := _meaning(label)) is not None:
            known = _meaning(self._labels[record])
            if known is None:
                self._labels[record] = self.later_labels[record] = label
            elif meaning != known:
                return None
        return record


def _meaning(label: Any) -> Any:
    """Returns the value by which labels are compared; None for a missing label.

    Numbers are compared by value, even if written as text; other text without surrounding blanks.
    None, NaN, -1 and blank text count as missing, as in `clip_jax.evaluation.labels`.
    """
    if isinstance(label, str):
        label = unicodedata.normalize("NFC", label).strip()
        if not label:
            return None
        if _NUMBER.fullmatch(label):
            label = int(label.partition(".")[0])
    is_nan = isinstance(label, float) and math.isnan(label)
    return None if label is None or is_nan or label == _UNLABELLED else label


class PathSource:
    """Source of rows that name image files; base class of the text formats.

    The key is the path as written in the file. Relative paths are relative to the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: SourceOptions,
        endings: tuple[str, ...],
        elsewhere: Sequence[str] = (),
    ) -> None:
        """Reads all rows.

        Args:
          endings: endings of the files to read, such as ".csv".
          elsewhere: folders to search if none of a file's first images exists relative to it; used
            if exactly one folder has any.

        Raises UserError: file missing, no usable row, or none of the first images found.
        """
        self._paths, self.split = _expanded(os.fspath(path), endings, options)
        self._options = options
        rows = ImageRows(self._paths, options)
        for number, name in enumerate(self._paths):
            rows.begin(number)
            try:
                self._read(name, local_copy(name, options.remote), rows)
            except OSError as error:
                raise UserError(f"{name} cannot be read: {error.strerror or error}") from None
        self.dropped: Drops = rows.dropped
        self._store = rows.store
        self._later_labels = rows.later_labels
        self._store.gather(keep_columns=bool(options.caption_weights))
        # A file's records are consecutive; these are the indices of the first ones.
        self._starts = np.searchsorted(np.asarray(rows.files), np.arange(len(self._paths)))
        if not len(self._store) and not (options.skip_unreadable and self.dropped.total):
            why = next(iter(self.dropped.items()), None)
            wanted = "an image and a caption" if options.needs_captions else "an image"
            raise UserError(
                f"{path} has no row with {wanted}; give at least one"
                + (f" ({self.dropped.total} dropped; {why[0]}: {why[1]})" if why else "")
            )
        # Each file's relative paths start from its entry in this list.
        self._folders = [os.path.dirname(name) for name in self._paths]
        self._check_images(elsewhere)
        self.fingerprint = fingerprint_of(
            (self.key(index), self.captions(index)) for index in range(len(self))
        )

    def _read(self, name: str, path: Path, rows: ImageRows) -> None:
        """Adds all rows of the file called `name`, whose local copy is `path`."""
        raise NotImplementedError

    def _check_images(self, elsewhere: Sequence[str]) -> None:
        ends = [*self._starts[1:].tolist(), len(self)]
        for file, (start, end) in enumerate(zip(self._starts.tolist(), ends, strict=True)):
            first = [
                self.key(index) for index in range(start, min(end, start + _LOOKED_AT_RECORDS))
            ]
            if not first:
                continue
            if all(key.startswith(("http://", "https://")) for key in first):
                raise UserError(
                    f"{self._paths[file]}: its images are on the web (such as {first[0]}); download"
                    " the images first (img2dataset does), so that the column holds paths"
                )
            having = [folder for folder in elsewhere if _has_any(folder, first)]
            if len(having) == 1 and not _has_any(self._folders[file], first):
                self._folders[file] = having[0]
            check_images_exist(self._paths[file], self._folders[file], first)

    def _file(self, index: int) -> int:
        """Returns the number of the file that a record comes from."""
        index = index if index >= 0 else index + len(self)
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Record:
        key, captions, weights = self.key(index), self.captions(index), None
        if self._options.caption_weights:
            texts: list[list[str]] = [[] for _ in self._options.caption_weights]
            for column, caption in zip(self._store.columns(index), captions, strict=True):
                texts[column].append(caption)
            captions, weights = captions_of(texts, self._options)
        return Record(
            key, read_image(self.folder(index), key, self._options.remote), captions, weights
        )

    def folder(self, index: int) -> str:
        """Returns the folder that a record's path is relative to."""
        return self._folders[self._file(index)]

    def captions(self, index: int) -> tuple[str, ...]:
        return self._store.captions(index)

    def metadata(self, index: int) -> dict[str, Any]:
        fields = self._fields(index)
        label = self._later_labels.get(index if index >= 0 else index + len(self))
        if label is not None:
            column = find_label_column(tuple(fields), self._options)
            fields[column or self._options.label_column or ""] = label
        return with_label(fields, self._options)

    def _fields(self, index: int) -> dict[str, Any]:
        """Returns the other columns of the record's first row."""
        raise NotImplementedError

    def key(self, index: int) -> str:
        return self._store.keys[index]


def _has_any(folder: str, images: Sequence[str]) -> bool:
    """Returns whether any of the images is in a local folder."""
    return any(os.path.isfile(image_place(folder, image)) for image in images)


def _expanded(
    path: str, endings: tuple[str, ...], options: SourceOptions
) -> tuple[list[str], str | None]:
    """Returns (the files that a path means, their split or None). Raises UserError for none."""
    if is_remote(path) and not any(sign in path for sign in "*?[{,"):
        return [path], None  # whatever its ending
    if os.path.isdir(path):
        names = os.listdir(path)
        there = [ending for ending in endings if any(has_ending(name, ending) for name in names)]
        found = [
            name
            for ending in there or endings[:1]
            for name in expand_paths(path, ending, options.remote)
        ]
        return files_of_split(path, found, options)
    ending = next((ending for ending in endings if ending in path.lower()), endings[0])
    return expand_paths(path, ending, options.remote), None
