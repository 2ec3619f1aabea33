"""Columns, captions and images of rows: code shared by all sources of rows.

A row is a line of a CSV or JSON-lines file, or a row of a Parquet or Hugging Face dataset.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import CaptionError, check_unicode, decode_caption
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.disk import read_file
from clip_jax.files.options import RemoteOptions
from clip_jax.files.patterns import is_remote

IMAGE_COLUMNS = ("image", "filepath", "path", "file_name", "filename", "image_path")
# These are for formats whose cells may hold the image itself, as img2dataset and others name it.
ENCODED_IMAGE_COLUMNS = (
    *IMAGE_COLUMNS,
    *("jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes"),
    *("image/encoded", "url", "image_url"),
)
CAPTION_COLUMNS = ("caption", "title", "text")
# If cells may be lists, the plural is as common; names with "/" are from TFDS.
MANY_CAPTION_COLUMNS = (
    *CAPTION_COLUMNS,
    *("captions", "texts", "sentences", "caption/text", "captions/text"),
)
KEY_COLUMNS = ("key", "__key__")

MAX_CAPTION_BYTES = 4 << 20  # a "caption" beyond this is an accident or an attack
_PROBED_IMAGES = 20  # first images, checked for existence before training


@dataclass(frozen=True)
class Columns:
    """Column names of a record, as the data spells them; `captions` in the order of the options.

    `label` is the column of `SourceOptions.label_column`, and may also be one of the others.
    """

    image: str
    captions: tuple[str, ...]
    key: str | None
    label: str | None = None

    @property
    def used(self) -> set[str]:
        """Returns the names of all columns that records are made of."""
        return {self.image, *self.captions} | ({self.key} if self.key is not None else set())


def find_columns(
    where: str,
    names: Sequence[str],
    options: SourceOptions,
    image_columns: Sequence[str] = IMAGE_COLUMNS,
    caption_columns: Sequence[str] = CAPTION_COLUMNS,
) -> Columns:
    """Returns the columns that the options name, or the first with usual names, ignoring case.

    Raises UserError, which lists the columns present, if there is none; caption columns may be
    missing if captions are not needed.
    """
    image = _find(where, names, options.image_column, image_columns, "image_column")
    captions: tuple[str, ...] = ()
    try:
        captions = tuple(
            _find(where, names, given, caption_columns, "caption_column")
            for given in options.caption_columns or (None,)
        )
    except UserError:
        if options.needs_captions:
            raise
    key = next((name for name in KEY_COLUMNS if name in names), None)
    key = key if key not in (image, *captions) else None
    return Columns(image, captions, key, find_label_column(names, options))


def find_label_column(names: Sequence[str], options: SourceOptions) -> str | None:
    """Returns the label column, as the data spells it; None if none is wanted or present.

    It is matched like caption columns: the exact spelling first, then ignoring case.
    """
    wanted = options.label_column
    if wanted is None or wanted in names:
        return wanted
    return next((name for name in names if name.lower() == wanted.lower()), None)


def _find(
    where: str, names: Sequence[str], given: str | None, known: Sequence[str], option: str
) -> str:
    """Returns one column: `given`, or the first of `known`."""
    lowered = [name.lower() for name in names]
    for name in (given,) if given is not None else known:
        if name in names:
            return name
        if name.lower() in lowered:
            return names[lowered.index(name.lower())]
    wanted = f"no column {given!r}" if given is not None else f"none of {', '.join(known)}"
    raise UserError(
        f"{where} has {wanted}; its columns are: {', '.join(names) or '(none)'};"
        f" name one with {option}"
    )


def texts_of(value: Any) -> list[str]:
    """Returns the captions in a cell (text, UTF-8 bytes or a list of these) without blank ones.

    Raises CaptionError for other types, for captions above `MAX_CAPTION_BYTES`, and for bad text.
    """
    if isinstance(value, Iterable) and not isinstance(value, (str, bytes, Mapping)):
        return [text for item in value for text in _one_text(item)]
    return _one_text(value)


def _one_text(value: Any) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, (str, bytes)):
        raise CaptionError(f"caption is {type(value).__name__}, not text", "row_malformed")
    if len(value) > MAX_CAPTION_BYTES:
        raise CaptionError(f"caption of {len(value)} bytes", "caption_too_long")
    if not value.strip():
        return []
    if isinstance(value, bytes):
        return [decode_caption(value)]
    return [check_unicode(value)]


Captions = tuple[tuple[str, ...], tuple[float, ...] | None]


def captions_of(cells: Sequence[Any], options: SourceOptions) -> Captions:
    """Returns (captions, weights) of a record, from its cells in the order of the caption columns.

    If no caption is left: raises CaptionError, or returns none without `needs_captions`.
    """
    try:
        return weighted([texts_of(cell) for cell in cells], cells, options)
    except CaptionError:
        if options.needs_captions:
            raise
        return (), None


def weighted(
    texts: Sequence[Sequence[str]], cells: Sequence[Any], options: SourceOptions
) -> Captions:
    """Returns the same as `captions_of`; `texts`: the usable captions of each cell."""
    if not any(texts):
        if all(cell is None for cell in cells):
            raise CaptionError("caption is missing", "caption_missing")
        raise CaptionError("caption is empty", "caption_empty")
    captions, weights = options.chosen(texts)
    if not captions:
        raise CaptionError("all its captions are of columns of weight 0", "caption_empty")
    return captions, weights


def caption_of_class(template: str, class_name: str) -> str:
    """Returns the caption of a class. Raises UserError if the template has no `{}`."""
    if "{}" not in template:
        raise UserError(f"caption_template {template!r} has no '{{}}' where the class name goes")
    return template.replace("{}", " ".join(class_name.replace("_", " ").split()))


def image_place(folder: str, value: str) -> str:
    """Returns the path or URL that a cell names: `value`, possibly relative to `folder`."""
    if "://" in value:
        return value
    return f"{folder}/{value}" if is_remote(folder) else os.path.join(folder, value)


def read_image(folder: str, value: str, remote: RemoteOptions) -> bytes:
    """Reads the file that a cell names. Raises DecodeError if it cannot be read."""
    place = image_place(folder, value)
    if not is_remote(place):
        return read_file(place.removeprefix("file://"))
    if place.startswith(("http://", "https://")):
        from clip_jax.data.sources.linked_images import read_linked_image

        return read_linked_image(place, remote)
    from clip_jax.files.stores import read_bytes

    try:
        return read_bytes(place, remote)
    except OSError as error:
        raise DecodeError(str(error), "image_missing") from error


def check_images_exist(where: str, folder: str, images: Iterable[str]) -> None:
    """Raises UserError if none of the first images exists; remote ones are not checked.

    A wrong folder gives one clear error now instead of a thousand unreadable images later.
    """
    first = [image_place(folder, image) for image in islice(images, _PROBED_IMAGES)]
    if any(is_remote(place) or os.path.isfile(place.removeprefix("file://")) for place in first):
        return
    raise UserError(
        f"{where}: none of its first images exists (such as {first[0]});"
        f" relative paths are relative to {folder}"
    )


def local_copy(path: str, remote: RemoteOptions) -> Path:
    """Returns the path of a local file, or of a remote file's copy in the cache. Raises OSError."""
    if not is_remote(path):
        return Path(path.removeprefix("file://"))
    from clip_jax.files.stores import fetch

    return fetch(path, remote)
