"""Folders of images, captioned by a table, by `.txt` files beside the images, or by class names.

Hugging Face's ImageFolder is one of these: a `metadata.jsonl` or `.csv` in each split's folder.
"""

import dataclasses
import logging
import os
import posixpath
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Reader, Record, Source
from clip_jax.data.sources.base import BaseSource, Parts, hash_of
from clip_jax.data.sources.columns import find_label_column
from clip_jax.data.sources.folder import (
    FolderContents,
    FolderSource,
    is_image_name,
    is_named_as_captions,
    list_folder,
    table_readers,
    tables_among,
)
from clip_jax.data.sources.path_rows import PathSource
from clip_jax.data.sources.splits import choose_split, is_split_name
from clip_jax.errors import UserError
from clip_jax.files.patterns import what_is_wrong

logger = logging.getLogger(__name__)

_MAX_ELSEWHERE = 100  # maximum number of folders searched for the images of a table


def open_folder(path: str, options: SourceOptions) -> Source:
    """Opens a folder of images.

    Captions come from `.txt` files beside the images; if there are none, from a table in the folder
    or one in each of several subfolders, with paths relative to the table; otherwise from the names
    of the subfolders. If captions are not needed, a table is read only for its label column, or if
    the names of the subfolders are not classes.

    If all subfolders have names of splits, one of them is read (`options.split`,
    `options.preferred_splits`), and its name is the source's `split`. The splits may also be in the
    only subfolder that has images, at any depth.

    Raises:
      UserError: no folder, no image, none with a caption, a missing split, or several tables of
        captions of which any may be meant.
    """
    if os.path.islink(path) and not os.path.exists(path):
        raise UserError(f"data path {path} {what_is_wrong(path)}; give a folder")
    if not os.path.isdir(path):
        raise UserError(f"data path {path} is not a folder; give an existing folder of images")
    root = Path(path)
    inside = _folder_of_split(root, options)
    source = _open(root, inside or "", options)
    if inside is not None:
        source.split = posixpath.basename(inside)  # type: ignore[attr-defined]
    return source


def _folder_of_split(root: Path, options: SourceOptions) -> str | None:
    """Returns the folder of the split to read, relative to root; None if there is none."""
    inside = ""
    while True:
        folders, files = list_folder(root / inside)
        tables = _find_tables(root / inside, tables_among(files), options)
        is_read = bool(tables.names) and (tables.have_labels or not _wants_labels(options))
        if is_read or any(map(is_image_name, files)):
            return None
        split = _chosen_split(root / inside, options)
        if split is not None:
            return posixpath.join(inside, split)
        with_images = (name for name in sorted(folders) if _has_images(root / inside / name))
        first_two = list(islice(with_images, 2))
        if len(first_two) != 1 or is_split_name(first_two[0]):
            return None
        inside = posixpath.join(inside, first_two[0])


def _chosen_split(root: Path, options: SourceOptions) -> str | None:
    """Returns the subfolder to read if all those with images have names of splits, else None."""
    folders, files = list_folder(root)
    named = sorted(name for name in folders if is_split_name(name) and _has_images(root / name))
    least = 2 if options.split is None else 1
    if len(named) < least or any(map(is_image_name, files)):
        return None
    if any(_has_images(root / name) for name in folders if not is_split_name(name)):
        return None
    return choose_split(str(root), named, options)


def _has_images(folder: Path, seen: set[str] | None = None) -> bool:
    seen = set() if seen is None else seen
    real = os.path.realpath(folder)
    if real in seen:  # a link to a parent
        return False
    seen.add(real)
    folders, files = list_folder(folder)
    return any(map(is_image_name, files)) or any(
        _has_images(folder / name, seen) for name in folders
    )


def _open(root: Path, inside: str, options: SourceOptions) -> Source:
    """Opens the images below root/inside."""
    here = root / inside
    contents = FolderContents(here)
    found = _find_tables(here, contents.tables, options)
    tables = found.names
    if _wants_labels(options) and not found.have_labels and _has_classes(contents):
        tables = []
    if contents.captioned and options.needs_captions:
        if tables:
            said = "%s: captions are read from the .txt files beside the images, not from %s"
            logger.warning(said, here, ", ".join(tables))
        return FolderSource(root, options, contents, inside)
    if not tables:
        _check_refused(here, contents, found.refused, options)
        _check_classes(here, contents)
        return FolderSource(root, options, contents, inside)
    tables, split = _meant(here, tables, options)
    logger.info("%s: captions are read from %s", here, ", ".join(tables))
    searching = dataclasses.replace(options, image_folders=_folders_of_images(here, contents))
    paths = [here / table for table in tables]
    sources = [_reader_of(path.name).open(str(path), searching) for path in paths]
    source = FolderOfTables(root, sources, paths, options)
    source.split = split
    are_splits = all(is_split_name(_stem(table)) for table in tables)
    if not are_splits and all(isinstance(each, PathSource) for each in sources):
        _check_rows(root, here, contents, source, tables)
    return source


def _meant(root: Path, tables: list[str], options: SourceOptions) -> tuple[list[str], str | None]:
    """Returns (tables to read together, None), or (the table of one split, its name).

    Raises UserError if a folder has several tables, or has a table and a subfolder another.
    """
    stems = {_stem(table): table for table in tables}
    folders = [posixpath.dirname(table) for table in tables]
    are_splits = len(stems) == len(tables) > len(set(folders)) and all(map(is_split_name, stems))
    if are_splits and len(set(folders)) == 1:
        split = choose_split(str(root), sorted(stems), options)
        return [stems[split]], split
    for folder in folders:
        above = {*folders} - {folder}
        is_inside = any(folder.startswith(f"{other}/" if other else "") for other in above)
        if is_inside or folders.count(folder) > 1:
            raise UserError(
                f"{root} has several tables of captions: {', '.join(sorted(tables))}; give one of"
                f" these files, such as {root / min(tables)}, in place of the folder, or all files"
                " of a kind with format=csv or format=jsonl"
            )
    return sorted(tables), None


def _stem(table: str) -> str:
    return posixpath.basename(table).partition(".")[0]


class _Tables(NamedTuple):
    """Tables with columns of images and of captions or labels, and why others were refused."""

    names: list[str]
    refused: dict[str, str]
    have_labels: bool


def _wants_labels(options: SourceOptions) -> bool:
    """Returns whether the data is read for its labels."""
    return options.label_column is not None and not options.needs_captions


def _find_tables(root: Path, names: Sequence[str], options: SourceOptions) -> _Tables:
    tables: list[str] = []
    refused: dict[str, str] = {}
    have_labels = False
    for name in names:
        read_columns = _reader_of(name).table_columns
        assert read_columns is not None
        try:
            columns, captions = read_columns(root / name, options)
        except UserError as error:
            refused[name] = str(error)
            continue
        except (UnicodeDecodeError, OSError):
            refused[name] = f"{root / name} is no readable UTF-8 text"
            continue
        # A table with neither is ignored: the folders' names are the classes.
        has_label = find_label_column(columns, options) is not None
        have_labels |= has_label
        if captions or has_label:
            tables.append(name)
    return _Tables(tables, refused, have_labels)


def _check_refused(
    root: Path, contents: FolderContents, refused: dict[str, str], options: SourceOptions
) -> None:
    """Warns about a refused table when folder names become the captions.

    Raises UserError if these are not class names: fewer than two, or names of splits.
    """
    if not refused or not options.needs_captions:
        return
    name = min(refused, key=lambda name: (not is_named_as_captions(name), name))
    if _has_classes(contents):
        if is_named_as_captions(name):
            logger.warning("%s is not read: %s", root / name, refused[name])
        return
    raise UserError(
        f"{refused[name]}; or else, if the names of the folders in {root} are the captions, take"
        f" {name} out of it"
    )


def _has_classes(contents: FolderContents) -> bool:
    """Returns whether several subfolders have names that can be classes."""
    return sum(not is_split_name(folder) for folder in contents.class_folders) > 1


def _check_classes(root: Path, contents: FolderContents) -> None:
    """Warns if the folders that would be the classes have names of splits."""
    folders = sorted(contents.class_folders)
    if folders and not contents.captioned and all(map(is_split_name, folders)):
        logger.warning(
            "%s: its classes are %s, which are names of splits; the class of an image is the name"
            " of the folder that it is in, so put the folders of classes into those of splits"
            " (train/cat/1.jpg)",
            root,
            ", ".join(folders),
        )


def _check_rows(
    root: Path, here: Path, contents: FolderContents, source: Source, tables: Sequence[str]
) -> None:
    """Warns about images that no row names, which are left out.

    They do not count as dropped: a table may name a few of many images on purpose.
    """
    keys = (source.key(index).removeprefix("file://") for index in range(len(source)))
    named = {os.path.abspath(os.path.join(root, key)) for key in keys}
    top = os.path.abspath(here)
    unnamed = [image for image in contents.images if f"{top}/{image}" not in named]
    if unnamed:
        logger.warning(
            "%s: %d of its %d images have no usable row in %s; they are left out, the first is %s",
            here,
            len(unnamed),
            len(contents.images),
            tables[0] if len(tables) == 1 else f"any of its {len(tables)} tables",
            unnamed[0],
        )


def _folders_of_images(root: Path, contents: FolderContents) -> tuple[str, ...]:
    """Returns folders that may hold the images of a table; () if there are too many."""
    folders: set[str] = set()
    for image in contents.images:
        folders.add(posixpath.dirname(image))
        if len(folders) > _MAX_ELSEWHERE:
            return ()
    return tuple(str(root / folder) for folder in sorted(folders))


def _reader_of(table: str) -> Reader:
    return table_readers()[table.lower().rpartition(".")[2]]


class FolderOfTables(BaseSource):
    """Source of several tables in one folder, root; keys are paths relative to it."""

    def __init__(
        self, root: Path, sources: Sequence[Source], paths: Sequence[Path], options: SourceOptions
    ) -> None:
        super().__init__(options)
        self._root = str(root)
        self._sources = tuple(sources)
        self._paths = tuple(map(str, paths))
        self._parts = Parts(map(len, sources))
        for source, path in zip(sources, paths, strict=True):
            where = "" if len(sources) == 1 else f"{path.relative_to(root).as_posix()} "
            self.dropped.update(source.dropped, where, kept=len(source))
        self.fingerprint = hash_of(self)

    def _find(self, index: int) -> tuple[Source, int]:
        """Returns (table, number in it)."""
        part, number = self._parts.find(index)
        return self._sources[part], number

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> Record:
        source, number = self._find(index)
        return dataclasses.replace(source[number], key=self.key(index))

    def captions(self, index: int) -> tuple[str, ...]:
        source, number = self._find(index)
        return source.captions(number)

    def metadata(self, index: int) -> dict[str, Any]:
        source, number = self._find(index)
        return source.metadata(number)

    def key(self, index: int) -> str:
        part, number = self._parts.find(index)
        source = self._sources[part]
        key = source.key(number)
        folder = os.path.dirname(self._paths[part])
        if isinstance(source, PathSource):
            folder = source.folder(number)
        folder = folder or "."  # if the folder is that of the process
        if folder == self._root or "://" in key or os.path.isabs(key):
            return key
        return posixpath.normpath(posixpath.join(os.path.relpath(folder, self._root), key))


READER = Reader("folder", open_folder, files="images", in_memory=True)
