"""Folders written by `datasets.save_to_disk`, read in place (memory-mapped Arrow files)."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.process_cache import ProcessCache
from clip_jax.data.records import Reader
from clip_jax.data.sources.arrow_rows import ArrowSource
from clip_jax.data.sources.columns import (
    ENCODED_IMAGE_COLUMNS,
    MANY_CAPTION_COLUMNS,
    Columns,
    find_columns,
)
from clip_jax.data.sources.splits import choose_split, find_split
from clip_jax.errors import DecodeError, UserError, one_line

_ROWS_AT_ONCE = 1000  # when all captions are read
_MAX_VIEWS = 8  # selections of columns; a source uses four


class HuggingFaceSource(ArrowSource):
    """Source of one split of a dataset on disk; each row is a record.

    The image is the column of type Image, or one of bytes or paths. Captions are columns of text or
    lists of texts, or else the names of the ClassLabel put into `caption_template` (and into
    `metadata["class"]`). Of several such columns, the one with a usual name is taken. The key is
    the column "key", otherwise SPLIT:ROW.

    Args:
      path: the folder of a Dataset or of a DatasetDict.
      options: `split` selects one of a DatasetDict; by default "train", or the only one.

    Raises:
      UserError: not such a folder, no such split or column, or no usable row.
    """

    def __init__(self, path: str, options: SourceOptions) -> None:
        self._path = path
        dataset, self._rows_name, split = _load(path, options)
        # Workers that reopen it get the same split, without a second warning.
        super().__init__(dataclasses.replace(options, split=split))
        self.split = split
        features = dataset.features
        classes = {
            name: feature.names
            for name, feature in features.items()
            if type(feature).__name__ == "ClassLabel"
        }
        self._set_columns(_columns(path, features, options), classes)
        self._views = ProcessCache(_MAX_VIEWS)
        self._views.get((), lambda: dataset)
        self._select_rows(path, features.arrow_schema, "a caption")

    def _pieces(self) -> Iterator[tuple[int, int, Any]]:
        count = len(self._view(()))
        # Selecting no columns would give a table without rows.
        step = _ROWS_AT_ONCE if self._text_columns else max(1, count)
        for first in range(0, count, step):
            end = min(first + step, count)
            yield first, end - first, self._view(tuple(self._text_columns))[first:end]

    def _view(self, columns: tuple[str, ...]) -> Any:
        """Returns the dataset with these columns; with all for ()."""
        if not columns:
            return self._views.get((), lambda: _load(self._path, self._options)[0])
        return self._views.get(columns, lambda: self._view(()).select_columns(list(columns)))

    def _table(self, row: int, columns: Sequence[str]) -> tuple[Any, int]:
        try:
            return self._view(tuple(columns))[row : row + 1], 0
        except (OSError, ValueError, UserError) as error:
            reason = f"{self._rows_name}:{row} cannot be read: {one_line(error)}"
            raise DecodeError(reason, "shard_unreadable") from error

    def _origin(self, row: int) -> tuple[str, int]:
        return self._rows_name, row

    def _folder(self, index: int) -> str:
        return self._path


def _load(path: str, options: SourceOptions) -> tuple[Any, str, str | None]:
    """Loads (Dataset of Arrow tables, prefix of row names, name of the split).

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
        split = choose_split(path, list(found), options)
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
    return found.with_format("arrow"), name, split


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


READER = Reader(
    "huggingface",
    HuggingFaceSource,
    # A dataset has state.json or *.arrow, too; TFDS's dataset_info.json is beside features.json.
    signs=(("dataset_info.json",), ("dataset_dict.json",)),
    rank=3,
    files="folder",
)
