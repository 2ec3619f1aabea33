"""Rows that name image files: the base of the CSV and JSON-lines sources."""

import math
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import CaptionError, Record
from clip_jax.data.sources.base import hash_of
from clip_jax.data.sources.columns import (
    captions_of,
    check_images_exist,
    find_label_column,
    image_place,
    local_copy,
    read_image,
    texts_of,
    weighted,
)
from clip_jax.data.sources.record_store import StoredSource
from clip_jax.data.sources.splits import source_files
from clip_jax.errors import UserError
from clip_jax.files.patterns import is_pattern, is_remote

_LOOKED_AT_RECORDS = 20  # of each file, when images are looked for
_NUMBER = re.compile(r"[+-]?\d{1,18}(\.0*)?", re.ASCII)
_UNLABELLED = -1


class PathSource(StoredSource):
    """Source of rows that name image files; base class of the text formats.

    Rows with the same image make one record with several captions, in the place of the first row,
    whose other columns are its metadata. The key is the path as written in the file. Relative paths
    are relative to the file; if none of a file's first images exists there, they are relative to
    the one of `options.image_folders` that has any.

    A later row with a different label is dropped; one without a label is not.

    Args:
      endings: endings of the files to read, such as ".csv".

    Raises:
      UserError: file missing, no usable row, or none of the first images found.
    """

    def __init__(self, path: str, options: SourceOptions, endings: tuple[str, ...]) -> None:
        super().__init__(options)
        if is_remote(path) and not is_pattern(path):
            self._paths = [path]  # whatever its ending
        else:
            self._paths, self.split = source_files(path, endings, options)
        self._labels: list[Any] = []  # one per record, if labels are wanted
        self._later_labels: dict[int, Any] = {}  # record -> label, if its first row has none
        by_folder: dict[str, dict[str, int]] = {}  # folder -> image -> record
        starts = []  # a file's records are consecutive; these are the first ones
        for name in self._paths:
            self._row_prefix = f"{os.path.basename(name)} " if len(self._paths) > 1 else ""
            # The same relative path in another folder is another image.
            self._seen = by_folder.setdefault(os.path.dirname(name), {})
            starts.append(len(self._store))
            try:
                self._read(name, local_copy(name, options.remote))
            except OSError as error:
                raise UserError(f"{name} cannot be read: {error.strerror or error}") from None
        del self._seen, self._labels
        self._starts = np.asarray(starts)
        self._store.gather(keep_columns=bool(options.caption_weights))
        wanted = "an image and a caption" if options.needs_captions else "an image"
        self._check_not_empty(f"{path} has no row with {wanted}", "give at least one")
        self._folders = [os.path.dirname(name) for name in self._paths]
        self._check_images()
        self.fingerprint = hash_of(self)

    def _read(self, name: str, path: Path) -> None:
        """Adds all rows of a file called `name`, whose local copy is `path`."""
        raise NotImplementedError

    def _drop(self, kind: str, row: str, reason: str) -> None:
        """Drops a row; `row` is its name in its file."""
        self.dropped.add(kind, self._row_prefix + row, reason)

    def _add(
        self, row: str, image: Any, cells: Sequence[Any], rest: str, label: Any = None
    ) -> None:
        """Adds a row, or drops it under the name `row`.

        An image's `rest` comes from its first row, and its `label` from the first row with one.
        """
        if image is None or (isinstance(image, str) and not image.strip()):
            self._drop("image_missing", row, "image path is empty")
            return
        try:
            if not isinstance(image, str) or "\0" in image or not image.encode():
                raise ValueError
        except ValueError:  # also a lone surrogate
            reason = f"image is {type(image).__name__} {str(image)[:40]!r}, not a path"
            self._drop("row_malformed", row, reason)
            return
        try:
            texts = [texts_of(cell) for cell in cells]
            weighted(texts, cells, self._options)
        except CaptionError as error:
            if self._options.needs_captions:
                self._drop(error.kind, row, str(error))
                return
            texts = []
        record = self._record(image.strip(), rest, label)
        if record is None:
            first = self._labels[self._seen[image.strip()]]
            reason = f"label {label!r} where the image's first row has {first!r}"
            self._drop("row_malformed", row, reason)
            return
        self.dropped.kept_rows += 1
        weights = self._options.caption_weights
        for column, found in enumerate(texts):
            for text in found if not weights or weights[column] > 0 else ():
                self._store.add_caption(record, column, text)

    def _record(self, image: str, rest: str, label: Any) -> int | None:
        """Returns the number of the image's record, new or known; None if the labels differ."""
        has_labels = self._options.label_column is not None
        new = len(self._store)
        record = self._seen.setdefault(image, new)
        if record == new:
            self._store.add(image, rest)
            self._labels += [label] if has_labels else []
        elif has_labels and (meaning := _meaning(label)) is not None:
            known = _meaning(self._labels[record])
            if known is None:
                self._labels[record] = self._later_labels[record] = label
            elif meaning != known:
                return None
        return record

    def _check_images(self) -> None:
        ends = [*self._starts[1:].tolist(), len(self)]
        for file, (start, end) in enumerate(zip(self._starts.tolist(), ends, strict=True)):
            first = [self.key(index) for index in range(start, end)[:_LOOKED_AT_RECORDS]]
            if not first:
                continue
            if all(key.startswith(("http://", "https://")) for key in first):
                raise UserError(
                    f"{self._paths[file]}: its images are on the web (such as {first[0]}); download"
                    " the images first (img2dataset does), so that the column holds paths"
                )
            folders = self._options.image_folders
            having = [folder for folder in folders if _has_any(folder, first)]
            if len(having) == 1 and not _has_any(self._folders[file], first):
                self._folders[file] = having[0]
            check_images_exist(self._paths[file], self._folders[file], first)

    def _file(self, index: int) -> int:
        """Returns the number of the file that a record comes from."""
        index = index if index >= 0 else index + len(self)
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def folder(self, index: int) -> str:
        """Returns the folder that a record's path is relative to."""
        return self._folders[self._file(index)]

    def __getitem__(self, index: int) -> Record:
        key, captions, weights = self.key(index), self.captions(index), None
        if self._options.caption_weights:
            texts: list[list[str]] = [[] for _ in self._options.caption_weights]
            for column, caption in zip(self._store.columns(index), captions, strict=True):
                texts[column].append(caption)
            captions, weights = captions_of(texts, self._options)
        image = read_image(self.folder(index), key, self._options.remote)
        return Record(key, image, captions, weights)

    def metadata(self, index: int) -> dict[str, Any]:
        fields = self._fields(index)
        column = find_label_column(tuple(fields), self._options)
        later = self._later_labels.get(index if index >= 0 else index + len(self))
        if later is not None:
            fields[column or self._options.label_column or ""] = later
        if column is not None:
            fields.setdefault(self._options.label_column or column, fields[column])
        return fields

    def _fields(self, index: int) -> dict[str, Any]:
        """Returns the other columns of the record's first row."""
        raise NotImplementedError


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


def _has_any(folder: str, images: Sequence[str]) -> bool:
    """Returns whether any of the images is in a local folder."""
    return any(os.path.isfile(image_place(folder, image)) for image in images)
