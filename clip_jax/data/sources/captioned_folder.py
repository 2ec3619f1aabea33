"""What a folder of images is: captioned by a table in it, by files beside the images, by classes.

Hugging Face's ImageFolder is among these: a `metadata.jsonl` or `.csv` in each folder of a split.
"""

import dataclasses
import logging
import os
import posixpath
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Drops, Record, Source, fingerprint_of
from clip_jax.data.sources.columns import (
    ENCODED_IMAGE_COLUMNS,
    MANY_CAPTION_COLUMNS,
    find_columns,
    find_label_column,
)
from clip_jax.data.sources.folder import (
    FolderContents,
    FolderSource,
    class_of,
    is_image_name,
    is_named_as_captions,
    list_folder,
    tables_among,
)
from clip_jax.data.sources.json_lines import JsonLinesSource, read_fields
from clip_jax.data.sources.path_rows import PathSource
from clip_jax.data.sources.splits import choose_and_say, is_split_name
from clip_jax.data.sources.table import TableSource, read_head
from clip_jax.errors import UserError
from clip_jax.files.patterns import what_is_wrong

logger = logging.getLogger(__name__)

_JSON_ENDINGS = ("jsonl", "ndjson", "json")
_MAX_ELSEWHERE = 100  # folders in which the images of a table are looked for


def open_folder(path: str | os.PathLike[str], options: SourceOptions) -> Source:
    """Opens a folder of images.

    Captions are those of `.txt` files beside the images; without any, those of a table in the
    folder or of one in each of several subfolders, with paths relative to the table; without these,
    the names of the subfolders. Where all subfolders are named as splits are, one of them is read
    (`options.split`, `options.preferred_splits`), and the source has its name as `split`.

    Raises:
      UserError: no folder, no image, none with a caption, a split that is not there, or tables of
        captions of which none is plainly meant.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"data path {path} {what_is_wrong(os.fspath(path))}; give a folder")
    if not os.path.isdir(path):
        raise UserError(f"data path {path} is not a folder; give an existing folder of images")
    root = Path(path)
    _, files = list_folder(root)
    tables, _ = _tables_of_captions(root, tables_among(files), options)
    split = None if tables else _chosen_split(root, options)
    source = _open(root, split or "", options)
    if split is not None:
        source.split = split  # type: ignore[attr-defined]
    return source


def _chosen_split(root: Path, options: SourceOptions) -> str | None:
    """The subfolder that is read, where those with images are all named as splits are."""
    folders, files = list_folder(root)
    if not all(map(is_split_name, folders)):
        folders = {name for name in folders if is_split_name(name) or _has_images(root / name)}
    named = sorted(name for name in folders if is_split_name(name) and _has_images(root / name))
    others = [name for name in folders if not is_split_name(name)]
    least = 2 if options.split is None else 1
    if len(named) < least or others or any(map(is_image_name, files)):
        return None
    return choose_and_say(str(root), named, options)


def _has_images(folder: Path) -> bool:
    folders, files = list_folder(folder)
    return any(map(is_image_name, files)) or any(_has_images(folder / name) for name in folders)


def _open(root: Path, inside: str, options: SourceOptions) -> Source:
    """The images below root/inside."""
    contents = FolderContents(root / inside)
    tables, refused = _tables_of_captions(root / inside, contents.tables, options)
    if contents.captioned and options.needs_captions:
        if tables:
            logger.warning(
                "%s: captions are read from the .txt files beside the images, not from %s",
                root / inside,
                ", ".join(tables),
            )
        return FolderSource(root, options, contents, inside)
    if not tables:
        _check_refused(root / inside, contents, refused, options)
        return FolderSource(root, options, contents, inside)
    tables, split = _meant(root / inside, tables, options)
    logger.info("%s: captions are read from %s", root / inside, ", ".join(tables))
    elsewhere = _folders_of_images(root / inside, contents)
    sources = [_open_table(root / inside / table, options, elsewhere) for table in tables]
    found = FolderOfTables(root, sources, [root / inside / table for table in tables], options)
    found.split = split
    return found


def _meant(root: Path, tables: list[str], options: SourceOptions) -> tuple[list[str], str | None]:
    """(the tables that are read together, None), or (the one of a split, its name).

    Raises UserError where several of a folder, or of one and another inside, may be meant.
    """
    stems = {posixpath.basename(table).partition(".")[0]: table for table in tables}
    folders = [posixpath.dirname(table) for table in tables]
    are_splits = len(stems) == len(tables) > len(set(folders)) and all(map(is_split_name, stems))
    if are_splits and len(set(folders)) == 1:
        split = choose_and_say(str(root), sorted(stems), options)
        return [stems[split]], split
    for folder in folders:
        is_inside = any(other != folder and _is_below(folder, other) for other in folders)
        if is_inside or folders.count(folder) > 1:
            raise UserError(
                f"{root} has several tables of captions: {', '.join(sorted(tables))}; give one of"
                f" these files, such as {root / min(tables)}, in place of the folder, or all files"
                " of a kind with format=csv or format=jsonl"
            )
    return sorted(tables), None


def _is_below(folder: str, other: str) -> bool:
    return other == "" or folder.startswith(f"{other}/")


def _tables_of_captions(
    root: Path, names: Sequence[str], options: SourceOptions
) -> tuple[list[str], dict[str, str]]:
    """(the tables that name images and captions, why the others do not)."""
    tables, refused = [], {}
    for name in names:
        try:
            columns, captions = _columns(root / name, options)
        except UserError as error:
            refused[name] = str(error)
            continue
        except (UnicodeDecodeError, OSError):
            refused[name] = f"{root / name} is no readable UTF-8 text"
            continue
        # Of one without either, the classes are those of the folders.
        if captions or find_label_column(columns, options) is not None:
            tables.append(name)
    return tables, refused


def _columns(path: Path, options: SourceOptions) -> tuple[list[str], tuple[str, ...]]:
    """(all columns, those of captions). Raises UserError where those that are needed are missing,
    UnicodeDecodeError and OSError."""
    ending = path.name.lower().rpartition(".")[2]
    if ending == "parquet":
        from clip_jax.data.sources.row_groups import import_pyarrow

        import_pyarrow()
        import pyarrow.parquet

        try:
            names = pyarrow.parquet.read_schema(path).names
        except pyarrow.ArrowException as error:
            raise UserError(f"{path} is no readable Parquet file") from error
        found = find_columns(str(path), names, options, ENCODED_IMAGE_COLUMNS, MANY_CAPTION_COLUMNS)
        return names, found.captions
    if ending in _JSON_ENDINGS:
        names, found = read_fields(str(path), path, options)
        return names, found.captions
    head = read_head(str(path), path, options)
    return head.names, head.columns.captions


def _check_refused(
    root: Path, contents: FolderContents, refused: dict[str, str], options: SourceOptions
) -> None:
    """Says which table is not read where the names of folders become the captions.

    Raises UserError where these are no names of classes: fewer than two, or those of splits.
    """
    if not refused or not options.needs_captions:
        return
    name = min(refused, key=lambda name: (not is_named_as_captions(name), name))
    classes: set[str] = set()
    for index in range(len(contents.images)):
        folder = posixpath.dirname(contents.images[index])
        if folder and not is_split_name(posixpath.basename(folder)):
            classes.add(class_of(f"{folder}/"))
        if len(classes) > 1:
            if is_named_as_captions(name):
                logger.warning("%s is not read: %s", root / name, refused[name])
            return
    raise UserError(
        f"{refused[name]}; or else, if the names of the folders in {root} are the captions, take"
        f" {name} out of it"
    )


def _folders_of_images(root: Path, contents: FolderContents) -> tuple[str, ...]:
    """Those in which the images of a table may be; none where there are very many."""
    folders: set[str] = set()
    for index in range(len(contents.images)):
        folders.add(posixpath.dirname(contents.images[index]))
        if len(folders) > _MAX_ELSEWHERE:
            return ()
    return tuple(str(root / folder) for folder in sorted(folders))


def _open_table(path: Path, options: SourceOptions, elsewhere: tuple[str, ...]) -> Source:
    ending = path.name.lower().rpartition(".")[2]
    if ending == "parquet":
        from clip_jax.data.sources.parquet import ParquetSource

        return ParquetSource(path, options)
    if ending in _JSON_ENDINGS:
        return JsonLinesSource(path, options, elsewhere)
    return TableSource(path, options, elsewhere)


class FolderOfTables:
    """The records of several tables in one folder; keys are paths relative to it.

    Args:
      root: the folder.
      sources: the tables.
      paths: of the tables, for messages.
    """

    def __init__(
        self, root: Path, sources: Sequence[Source], paths: Sequence[Path], options: SourceOptions
    ) -> None:
        self.split: str | None = None
        self._root = str(root)
        self._sources = tuple(sources)
        self._paths = tuple(map(str, paths))
        self._ends = tuple(accumulate(len(source) for source in sources))
        self.dropped = Drops(options.listed_drops)
        for source, path in zip(sources, paths, strict=True):
            where = "" if len(sources) == 1 else f"{path.relative_to(root).as_posix()} "
            self.dropped.update(source.dropped, where, kept=len(source))
        self.fingerprint = fingerprint_of(
            (self.key(index), self.captions(index)) for index in range(len(self))
        )

    def _locate(self, index: int) -> tuple[int, int]:
        """(number of the table, index in it)"""
        index = index if index >= 0 else index + len(self)
        number = bisect_right(self._ends, index)
        if index < 0 or number == len(self._ends):
            raise IndexError(index)
        return number, int(index) - (self._ends[number - 1] if number else 0)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        number, local = self._locate(index)
        return dataclasses.replace(self._sources[number][local], key=self.key(index))

    def captions(self, index: int) -> tuple[str, ...]:
        number, local = self._locate(index)
        return self._sources[number].captions(local)

    def metadata(self, index: int) -> dict[str, Any]:
        number, local = self._locate(index)
        return self._sources[number].metadata(local)

    def key(self, index: int) -> str:
        number, local = self._locate(index)
        source = self._sources[number]
        key = source.key(local)
        folder = os.path.dirname(self._paths[number])
        if isinstance(source, PathSource):
            folder = source.folder(local)
        if folder == self._root or "://" in key or os.path.isabs(key):
            return key
        return posixpath.normpath(posixpath.join(os.path.relpath(folder, self._root), key))
