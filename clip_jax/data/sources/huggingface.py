"""Folders written by `datasets.save_to_disk`, read in place (memory-mapped Arrow files)."""

import dataclasses
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import CaptionError, Drops, Record, fingerprint_of
from clip_jax.data.sources.columns import (
    ENCODED_IMAGE_COLUMNS,
    MANY_CAPTION_COLUMNS,
    Captions,
    Columns,
    caption_of_class,
    captions_of,
    find_columns,
    read_image,
)
from clip_jax.data.sources.splits import choose_and_say, find_split
from clip_jax.errors import DecodeError, UserError, one_line

_ROWS_AT_ONCE = 1000  # when all captions are read


class HuggingFaceSource:
    """Source of one split of a dataset on disk; each row is a record.

    The image is the column of type Image, or one of bytes or paths. Captions are columns of text or
    lists of texts, or else the names of the ClassLabel put into `caption_template` (and into
    `metadata["class"]`). Of several such columns, the one with a usual name is taken. The other
    columns of single values are metadata. The key is the column "key", otherwise SPLIT:ROW.

    Opening reads captions and keys once, and keeps only the numbers of rows with a caption.

    Args:
      path: the folder of a Dataset or of a DatasetDict.
      options: `split` selects one of a DatasetDict; by default "train", or the only one.

    Raises:
      UserError: not such a folder, no such split or column, or no usable row.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: SourceOptions = SourceOptions(),  # noqa: B008 (frozen)
    ) -> None:
        self._path = os.fspath(path)
        self._options = options
        self._reset()
        dataset, self._split, self.split = _load(self._path, options)
        # Workers that reopen it get the same split, without a second warning.
        self._options = dataclasses.replace(options, split=self.split)
        self._columns = _columns(self._path, dataset.features, options)
        self._classes: dict[str, list[str]] = {
            name: feature.names
            for name, feature in dataset.features.items()
            if type(feature).__name__ == "ClassLabel"
        }
        if set(self._columns.captions) & set(self._classes):
            caption_of_class(options.caption_template, "class")  # fails now, not at the first row
        self._metadata_columns = [
            name
            for name, feature in dataset.features.items()
            if name == self._columns.label
            or (
                name not in {self._columns.image, self._columns.key}
                and type(feature).__name__ in ("Value", "ClassLabel")
                and (name not in self._columns.captions or name in self._classes)
                and "binary" not in str(feature.dtype)
            )
        ]
        keys = () if self._columns.key is None else (self._columns.key,)
        self._text_columns = list(dict.fromkeys([*self._columns.captions, *keys]))
        self.dropped = Drops(options.listed_drops)
        kept: list[int] = []
        self.fingerprint = fingerprint_of(self._usable_rows(dataset, kept))
        self._rows = np.asarray(kept, np.int64)
        if not kept and not (options.skip_unreadable and self.dropped.total):
            why = next(iter(self.dropped.items()), None)
            raise UserError(
                f"{path} has no row with a caption"
                + (f" ({self.dropped.total} dropped; {why[0]}: {why[1]})" if why else "")
                + "; give at least one"
            )

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._views: dict[tuple[str, ...], Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        private = ("_lock", "_process", "_views")
        return {name: value for name, value in self.__dict__.items() if name not in private}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _usable_rows(self, dataset: Any, kept: list[int]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yields (key, captions) of each usable row, and appends its number to `kept`."""
        if not self._text_columns:  # selecting no columns would give a table without rows
            kept.extend(range(len(dataset)))
            yield from ((self._key(row, {}), ()) for row in kept)
            return
        texts = dataset.select_columns(self._text_columns)
        for start in range(0, len(texts), _ROWS_AT_ONCE):
            try:
                found = texts[start : start + _ROWS_AT_ONCE]
                columns = zip(*found.values(), strict=True)
                rows = [dict(zip(found, cells, strict=True)) for cells in columns]
            except UnicodeDecodeError:
                ends = range(start, min(start + _ROWS_AT_ONCE, len(texts)))
                rows = [_row(texts, row) for row in ends]
            for row, cells in enumerate(rows, start=start):
                key = self._key(row, cells)
                try:
                    captions, _ = self._captions_in(cells)
                except CaptionError as error:
                    self.dropped.add(error.kind, key, str(error))
                    continue
                kept.append(row)
                yield key, captions

    def _captions_in(self, cells: dict[str, Any]) -> Captions:
        if not cells:
            if not self._options.needs_captions:
                return (), None
            raise CaptionError("caption is not UTF-8", "caption_not_utf8")
        found = []
        for name in self._columns.captions:
            value = cells[name]
            if name in self._classes and value is not None:
                class_name = self._class_name(name, value)
                if class_name is None and self._options.needs_captions:
                    raise CaptionError(f"label {value} has no class name", "caption_missing")
                template = self._options.caption_template
                value = None if class_name is None else caption_of_class(template, class_name)
            found.append(value)
        return captions_of(found, self._options)

    def _class_name(self, column: str, number: Any) -> str | None:
        names = self._classes.get(column)
        is_known = names is not None and isinstance(number, int) and 0 <= number < len(names)
        return names[number] if names is not None and is_known else None

    def _key(self, row: int, cells: dict[str, Any]) -> str:
        value = cells.get(self._columns.key) if self._columns.key is not None else None
        return f"{self._split}:{row}" if value in (None, "") else str(value)

    def _cells(self, index: int, columns: list[str]) -> dict[str, Any]:
        """Reads some columns of one row. Raises DecodeError if it cannot be read."""
        if self._process != os.getpid():  # another thread may have held the lock at the fork
            self._reset()
        view = self._views.get(tuple(columns))
        if view is None:
            with self._lock:
                if () not in self._views:
                    try:
                        self._views[()] = _load(self._path, self._options)[0]
                    except UserError as error:
                        raise DecodeError(str(error), "shard_unreadable") from error
                view = self._views[tuple(columns)] = self._views[()].select_columns(columns)
        try:
            return view[int(self._rows[index])]
        except (OSError, ValueError) as error:  # a caption that is not UTF-8 is a ValueError too
            reason = f"{self._split}:{int(self._rows[index])} cannot be read: {error}"
            raise DecodeError(reason, "shard_unreadable") from error

    def _image(self, index: int, value: Any) -> bytes:
        place = f"{self._split}:{int(self._rows[index])}"
        file = None
        if isinstance(value, dict):
            value, file = value.get("bytes"), value.get("path")
        if isinstance(value, str):
            value, file = None, value
        if not value and file:
            return read_image(self._path, file, self._options.remote)
        if not value:
            raise DecodeError(f"{place}: no image", "image_missing")
        return value

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        cells = self._cells(index, [self._columns.image, *self._text_columns])
        captions, weights = self._captions_in(cells)
        image = self._image(index, cells[self._columns.image])
        return Record(self._key(int(self._rows[index]), cells), image, captions, weights)

    def captions(self, index: int) -> tuple[str, ...]:
        columns = self._text_columns
        return self._captions_in(self._cells(index, columns) if columns else {})[0]

    def metadata(self, index: int) -> dict[str, Any]:
        if not self._metadata_columns:
            return {}
        found: dict[str, Any] = {}
        for name, value in self._cells(index, self._metadata_columns).items():
            class_name = self._class_name(name, value)
            known = value is None or isinstance(value, (str, int, float, bool))
            if name == self._columns.label:
                found[name] = value if class_name is None else class_name
            if name not in self._columns.captions:
                found.setdefault(name, class_name or (value if known else str(value)))
            elif name in self._classes:
                found["class"] = value if class_name is None else class_name
        return found

    def key(self, index: int) -> str:
        row = int(self._rows[index])
        if self._columns.key is None:
            return self._key(row, {})
        try:
            return self._key(row, self._cells(index, self._text_columns))
        except DecodeError:  # the message about an unreadable row needs a name
            return f"{self._split}:{row}"


def _load(path: str, options: SourceOptions) -> tuple[Any, str, str | None]:
    """Loads (Dataset with undecoded images, prefix of row names, name of the split).

    Raises UserError.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{path}: Hugging Face datasets need another package: pip install 'clip_jax[datasets]'"
        ) from error
    try:
        found = datasets.load_from_disk(path)
    except Exception as error:  # from the library, Arrow or JSON
        raise UserError(
            f"{path} cannot be read ({one_line(error)});"
            " give a folder that datasets.save_to_disk wrote"
        ) from error
    split: str | None
    if isinstance(found, datasets.DatasetDict):
        if not found:
            raise UserError(f"{path} has no splits; give a dataset with at least one")
        split = choose_and_say(path, list(found), options)
        found, name = found[split], str(split)
    else:
        name = str(found.split) if found.split else "rows"
        split = name if found.split else None
        if options.split is not None and find_split([name], options.split) is None:
            raise UserError(
                f"{path} has no split {options.split!r}; it is a single dataset"
                + (f", of split {name!r}" if found.split else "")
                + "; leave split out"
            )
    found = found.with_format(None)
    for column, feature in found.features.items():
        if isinstance(feature, datasets.Image):
            found = found.cast_column(column, datasets.Image(decode=False))
    return found, name, split


def _columns(where: str, features: Any, options: SourceOptions) -> Columns:
    names = list(features)

    def of_type(*types: str) -> list[str]:
        return [name for name in names if type(features[name]).__name__ in types]

    images = sorted(of_type("Image"), key=lambda name: name not in ENCODED_IMAGE_COLUMNS)
    usual = {name.lower() for name in names} & set(MANY_CAPTION_COLUMNS)
    classes = [] if usual else of_type("ClassLabel")
    return find_columns(
        where,
        names,
        options,
        tuple(images) or ENCODED_IMAGE_COLUMNS,
        tuple(classes) or MANY_CAPTION_COLUMNS,
    )


def _row(dataset: Any, row: int) -> dict[str, Any]:
    """Returns the cells of a row; {} if a text is not UTF-8."""
    try:
        return dataset[row]
    except UnicodeDecodeError:
        return {}
