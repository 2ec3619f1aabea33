"""Folder of images, captioned by `.txt` files beside them or by the names of their subfolders."""

import os
import posixpath
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import IMAGE_EXTENSIONS, CaptionError, Reader, Record, decode_caption
from clip_jax.data.sources import formats
from clip_jax.data.sources.base import hash_of
from clip_jax.data.sources.columns import caption_of_class
from clip_jax.data.sources.record_store import PackedTexts, StoredSource
from clip_jax.errors import UserError
from clip_jax.files.disk import read_file

# Files with some endings count as tables only if their name matches.
_TABLE_STEM = re.compile(r"metadata|captions?|annotations|\btoken\b")


class FolderContents:
    """Recursive listing of a folder, without hidden files and folders.

    Attributes:
      images: paths relative to the folder, with "/", sorted by folder.
      caption_files: for each image the name of the `.txt` beside it; "" for none.
      captioned: number of images that have one.
      class_folders: names of the subfolders, at any depth, that hold images.
      tables: relative paths of the files that may be tables of captions, by their names; without
        those named after an image in the same folder.
    """

    def __init__(self, root: Path) -> None:
        self.images = PackedTexts()
        self.caption_files = PackedTexts()
        self.captioned = 0
        self.class_folders: set[str] = set()
        self.tables: list[str] = []
        self._root = root
        self._seen: set[str] = set()
        self._walk("")

    def _walk(self, folder: str) -> None:
        # Links to class folders are common; real paths guard against a link to a parent.
        real = os.path.realpath(self._root / folder)
        if real in self._seen:
            return
        self._seen.add(real)
        folders, files = list_folder(self._root / folder)
        captions = caption_files(files)
        self.tables += (posixpath.join(folder, name) for name in tables_among(files))
        if folder and captions:
            self.class_folders.add(posixpath.basename(folder))
        for name in sorted((*folders, *files)):
            path = posixpath.join(folder, name)
            if name in captions:
                self.images.append(path)
                self.caption_files.append(captions[name])
                self.captioned += bool(captions[name])
            elif name in folders:
                self._walk(path)


def list_folder(folder: Path) -> tuple[set[str], list[str]]:
    """Returns (names of the folders, names of the files) in `folder`, without hidden ones.

    Raises UserError if the folder cannot be read.
    """
    folders, files = set(), []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                # A link may lead into a loop, of which `isdir` is false.
                if os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir():
                    folders.add(entry.name)
                else:
                    files.append(entry.name)
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}") from error
    return folders, files


def is_image_name(name: str) -> bool:
    """Returns whether a file has the ending of an image, ignoring case."""
    return name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS


def tables_among(names: list[str]) -> list[str]:
    """Returns the files of one folder that may be tables of captions, sorted."""
    stems = {name.rpartition(".")[0].lower() for name in filter(is_image_name, names)}
    readers = table_readers()
    found = []
    for name in names:
        stem, _, ending = name.lower().rpartition(".")
        reader = readers.get(ending)
        is_table = reader and (ending in reader.tables or is_named_as_captions(name))
        if is_table and not stems & {stem, stem.rpartition(".")[0]}:
            found.append(name)
    return sorted(found)


def table_readers() -> dict[str, Reader]:
    """Returns ending -> reader of the formats whose files may be tables of captions."""
    return {
        ending: reader
        for reader in formats().values()
        for ending in (*reader.tables, *reader.named_tables)
    }


def is_named_as_captions(name: str) -> bool:
    """Returns whether a file is called metadata, captions or the like."""
    return _TABLE_STEM.search(posixpath.basename(name).lower()) is not None


def caption_files(names: list[str]) -> dict[str, str]:
    """Returns image -> caption file ("" for none), for the files of one folder.

    `a.jpg` is captioned by `a.jpg.txt`, else `a.txt`, else by a file that differs from these only
    in case and is not the caption of another image.
    """
    texts = {name for name in names if name.lower().endswith(".txt")}

    def pick(image: str, among: Mapping[str, str]) -> str:
        both = (f"{image}.txt", f"{image.rpartition('.')[0]}.txt")
        return next((among[name] for name in both if name in among), "")

    exact = {text: text for text in texts}
    found = {name: pick(name, exact) for name in filter(is_image_name, names)}
    others = sorted(texts.difference(found.values()), reverse=True)
    by_lower = {text.lower(): text for text in others}
    return {name: text or pick(name.lower(), by_lower) for name, text in found.items()}


class FolderSource(StoredSource):
    """Source of the images below a folder, in sorted order.

    A `.txt` beside an image holds its captions, one per line. If no image has one, the name of an
    image's subfolder is its class (`metadata["class"]`, see `class_names`), and the caption is
    `caption_template` with that name in it, `_` and `-` read as spaces. The key is the path
    relative to the folder. Without `needs_captions` every image is a record and has its class.

    Args:
      contents: listing of the folder, or of its subfolder `inside` (such as "train") if not "".

    Raises UserError if the folder has no image, or no image with a caption.
    """

    def __init__(
        self, path: Path, options: SourceOptions, contents: FolderContents, inside: str
    ) -> None:
        if options.image_column is not None:
            raise UserError(
                f"image_column={options.image_column!r}: data of format folder has no such columns"
                " (every image file is one); leave it out"
            )
        caption_of_class(options.caption_template, "class")  # fails now, not at the first class
        super().__init__(options)  # the rest of a record in the store is its class
        self._root = path
        self._captioned = contents.captioned
        classes = class_names(contents.class_folders)
        for image, caption_file in zip(contents.images, contents.caption_files, strict=True):
            folder = posixpath.basename(posixpath.dirname(image))
            key = posixpath.join(inside, image)
            self._add(key, caption_file, folder, classes.get(folder, ""))
        self._store.gather(keep_columns=False)
        wanted, advice = "no image", "give one with files such as 1.jpg"
        if options.needs_captions:
            wanted = "no image with a caption"
            advice = "give images with .txt captions beside them, or in subfolders named by class"
        self._check_not_empty(f"folder {path} has {wanted}", advice)
        self.fingerprint = hash_of(self)

    def _add(self, key: str, caption_file: str, folder: str, class_name: str) -> None:
        needs_captions = self._options.needs_captions
        captions: tuple[str, ...] = ()
        try:
            if caption_file:
                captions = self._read_captions(key, caption_file)
            elif self._captioned and needs_captions:
                others = "other image has" if self._captioned == 1 else "other images have"
                reason = f"no .txt caption beside it, which {self._captioned:,} {others}"
                raise CaptionError(reason, "caption_missing")
            elif folder:
                readable = _readable(folder)
                if not readable:
                    raise CaptionError("the name of its folder has no letters", "caption_empty")
                captions = (caption_of_class(self._options.caption_template, readable),)
            else:
                reason = "no .txt caption beside it and not in a subfolder named by class"
                raise CaptionError(reason, "caption_missing")
        except CaptionError as error:
            if needs_captions:
                self.dropped.add(error.kind, key, str(error))
                return
        keeps_class = not caption_file or not needs_captions
        self._store.add(key, class_name if keeps_class else "")
        for caption in captions:
            self._store.add_caption(len(self._store) - 1, 0, caption)

    def _read_captions(self, key: str, caption_file: str) -> tuple[str, ...]:
        try:
            text = decode_caption((self._root / key).with_name(caption_file).read_bytes())
        except CaptionError as error:
            raise CaptionError(f"{caption_file}: {error}", error.kind) from None
        except OSError as error:
            reason = f"{caption_file} cannot be read: {error.strerror}"
            raise CaptionError(reason, "caption_missing") from None
        return tuple(line.strip() for line in text.splitlines() if line.strip())

    def __getitem__(self, index: int) -> Record:
        key = self.key(index)
        return Record(key, read_file(self._root / key), self.captions(index))

    def metadata(self, index: int) -> dict[str, Any]:
        class_name = self._store.rest[index]
        return {"class": class_name} if class_name else {}


def class_names(folders: Collection[str]) -> dict[str, str]:
    """Returns folder -> class, for all folders of a source that hold images.

    This is the folder's name with spaces for `_` and `-`; or its exact name if spaces would merge
    two folders (`T-shirt` and `T_shirt`), leave nothing, or change a number (`-1`).
    """
    counts = Counter(map(_readable, folders))
    found = {}
    for folder in folders:
        readable = _readable(folder)
        is_number = readable.replace(".", "").isdecimal()
        loses = not readable or counts[readable] > 1 or (is_number and readable != folder)
        found[folder] = folder if loses else readable
    return found


def _readable(folder: str) -> str:
    return " ".join(folder.replace("_", " ").replace("-", " ").split())
