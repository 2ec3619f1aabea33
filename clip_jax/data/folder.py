"""A folder of images, captioned by `.txt` files beside them or by the names of their subfolders."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.record_store import RecordStore
from clip_jax.data.records import (
    IMAGE_EXTENSIONS,
    CaptionError,
    Drops,
    Record,
    decode_caption,
    fingerprint_of,
    read_file,
)
from clip_jax.errors import UserError


def list_images(root: Path) -> Iterator[Path]:
    """Paths of all images below `root`, sorted, relative to it; hidden ones are skipped."""
    seen: set[str] = set()

    def walk(folder: Path) -> Iterator[Path]:
        # Linked class folders are common; the real path guards against a link to a parent.
        real = os.path.realpath(folder)
        if real in seen:
            return
        seen.add(real)
        try:
            with os.scandir(folder) as entries:
                listing = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{folder} cannot be read: {error.strerror}") from error
        for entry in listing:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            if entry.is_dir():
                yield from walk(Path(entry.path))
            elif entry.name.rpartition(".")[2].lower() in IMAGE_EXTENSIONS:
                yield Path(entry.path).relative_to(root)

    return walk(root)


class FolderSource:
    """Images below a folder, in sorted order.

    A sibling `.txt` wins: each of its non-empty lines is one caption. Otherwise the name of the
    image's subfolder, `_` and `-` read as spaces, is its class (`metadata["class"]`), and the
    caption is `caption_template` with the class in it. The key is the path relative to the folder.

    Raises:
      UserError: the folder is missing, or has no image, or no image with a caption.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        options: SourceOptions = SourceOptions(),  # noqa: B008
    ) -> None:
        caption_template = options.caption_template
        self._root = Path(path)
        if not os.path.isdir(path):
            raise UserError(f"data path {path} is not a folder; give an existing folder of images")
        if "{}" not in caption_template:
            raise UserError(
                f"caption_template {caption_template!r} has no '{{}}' where the class name goes"
            )
        self._store = RecordStore()  # the rest: the class
        self.dropped = Drops(options.listed_drops)
        for relative in list_images(self._root):
            self._add(relative, caption_template)
        if not len(self._store):
            why = next(iter(self.dropped.items()), None)
            raise UserError(
                f"folder {path} has no image with a caption"
                + (f" ({self.dropped.total} without; {why[0]}: {why[1]})" if why else "")
                + "; give images with .txt captions beside them, or in subfolders named by class"
            )
        self.fingerprint = fingerprint_of(
            (self.key(index), self.captions(index)) for index in range(len(self))
        )

    def _add(self, relative: Path, caption_template: str) -> None:
        key = relative.as_posix()
        class_name = None
        caption_file = (self._root / relative).with_suffix(".txt")
        if os.path.isfile(caption_file):
            try:
                text = decode_caption(caption_file.read_bytes())
            except CaptionError as error:
                self.dropped.add(error.kind, key, f"{caption_file.name}: {error}")
                return
            except OSError as error:
                self.dropped.add("caption_missing", key, f"{caption_file.name}: {error}")
                return
            captions = tuple(line.strip() for line in text.splitlines() if line.strip())
        elif len(relative.parts) > 1:
            class_name = " ".join(relative.parts[-2].replace("_", " ").replace("-", " ").split())
            captions = (caption_template.replace("{}", class_name),)
            if not class_name:
                self.dropped.add("caption_empty", key, "the name of its folder has no letters")
                return
        else:
            reason = "no .txt caption beside it and not in a subfolder named by class"
            self.dropped.add("caption_missing", key, reason)
            return
        self._store.add(key, captions, class_name or "")

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Record:
        key = self.key(index)
        return Record(key, read_file(self._root / key), self.captions(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return self._store.captions(index)

    def metadata(self, index: int) -> dict[str, Any]:
        class_name = self._store.rest[index]
        return {"class": class_name} if class_name else {}

    def key(self, index: int) -> str:
        return self._store.keys[index]
