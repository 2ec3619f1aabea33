"""Rows whose images are files that they name: what CSV and JSON lines have in common."""

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.paths import expand_paths, is_remote
from clip_jax.data.record_store import GatheringStore
from clip_jax.data.records import CaptionError, Drops, Record, fingerprint_of
from clip_jax.data.tabular import (
    check_images_exist,
    local_copy,
    read_image,
    texts_of,
    weighted,
)
from clip_jax.errors import UserError

_LOOKED_AT_RECORDS = 20  # of each file, for images that are on the web


class ImageRows:
    """Rows of (image path, captions, the rest), those of one image gathered into one record.

    Attributes:
      store: the records, in the order of their first rows.
      files: of each record that of its first row.
    """

    def __init__(self, paths: Sequence[str], options: SourceOptions) -> None:
        self._paths = paths
        self._options = options
        self._by_folder: dict[str, dict[str, int]] = {}  # folder -> image -> record
        self.begin(0)
        self.files = array("L")
        self.store = GatheringStore()
        self.dropped = Drops(options.listed_drops)

    def begin(self, file: int) -> None:
        """The rows of a file come now."""
        self.file = file
        # The same relative path is another image in another folder.
        self._seen = self._by_folder.setdefault(os.path.dirname(self._paths[file]), {})

    def drop(self, kind: str, row: str, reason: str) -> None:
        """`row` names it in its file."""
        if len(self._paths) > 1:
            row = f"{os.path.basename(self._paths[self.file])} {row}"
        self.dropped.add(kind, row, reason)

    def add(self, row: str, image: Any, cells: Sequence[Any], rest: str) -> None:
        """A row; `row` names it where it is dropped. Of an image's rows the first `rest` counts."""
        if image is None or (isinstance(image, str) and not image.strip()):
            self.drop("image_missing", row, "image path is empty")
            return
        try:
            if not isinstance(image, str) or "\0" in image or not image.encode():
                raise ValueError
        except ValueError:  # also half a surrogate pair
            reason = f"image is {type(image).__name__} {str(image)[:40]!r}, not a path"
            self.drop("row_malformed", row, reason)
            return
        try:
            texts = [texts_of(cell) for cell in cells]
            weighted(texts, cells, self._options)
        except CaptionError as error:
            self.drop(error.kind, row, str(error))
            return
        self.dropped.kept_rows += 1
        record = self._record(image.strip(), rest)
        for column, found in enumerate(texts):
            for text in found:
                self.store.add_caption(record, column, text)

    def _record(self, image: str, rest: str) -> int:
        """The number of the image's record, which is new or not."""
        new = len(self.files)
        record = self._seen.setdefault(image, new)
        if record == new:
            self.store.keys.append(image)
            self.store.rest.append(rest)
            self.files.append(self.file)
        return record


class PathSource:
    """Records whose images are files that rows name; base of the formats of text.

    The key is the path as the file has it. Relative paths are relative to the file.
    """

    def __init__(
        self, path: str | os.PathLike[str], options: SourceOptions, endings: tuple[str, ...]
    ) -> None:
        """`endings`: of the files that are meant, such as ".csv".

        Raises UserError: file missing, no usable row, or none of the first images there.
        """
        self._paths = _expanded(os.fspath(path), endings, options)
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
        self._store.gather(keep_columns=bool(options.caption_weights))
        # Where the records of each file begin.
        self._starts = np.searchsorted(np.asarray(rows.files), np.arange(len(self._paths)))
        if not len(self._store):
            why = next(iter(self.dropped.items()), None)
            raise UserError(
                f"{path} has no row with an image and a caption; give at least one"
                + (f" ({self.dropped.total} dropped; {why[0]}: {why[1]})" if why else "")
            )
        self._check_images()
        self.fingerprint = fingerprint_of(
            (self.key(index), self.captions(index)) for index in range(len(self))
        )

    def _read(self, name: str, path: Path, rows: ImageRows) -> None:
        """Adds all rows of the file called `name`, which lies at `path`."""
        raise NotImplementedError

    def _check_images(self) -> None:
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
            check_images_exist(self._paths[file], os.path.dirname(self._paths[file]), first)

    def _file(self, index: int) -> int:
        """Number of the file that a record comes from."""
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
            captions, weights = weighted(texts, texts, self._options)
        folder = os.path.dirname(self._paths[self._file(index)])  # of a URL too
        return Record(key, read_image(folder, key, self._options.remote), captions, weights)

    def captions(self, index: int) -> tuple[str, ...]:
        return self._store.captions(index)

    def metadata(self, index: int) -> dict[str, Any]:
        raise NotImplementedError

    def key(self, index: int) -> str:
        return self._store.keys[index]


def _expanded(path: str, endings: tuple[str, ...], options: SourceOptions) -> list[str]:
    """The files that a path means. Raises UserError where there are none."""
    if is_remote(path) and not any(sign in path for sign in "*?[{,"):
        return [path]  # whatever its ending
    if os.path.isdir(path):
        there = [ending for ending in endings if any(Path(path).glob(f"*{ending}"))]
        return [
            name
            for ending in there or endings[:1]
            for name in expand_paths(path, ending, options.remote)
        ]
    ending = next((ending for ending in endings if ending in path.lower()), endings[0])
    return expand_paths(path, ending, options.remote)
