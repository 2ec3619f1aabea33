"""What sources of rows have in common: which columns, which captions, which images.

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
from clip_jax.files.options import RemoteOptions
from clip_jax.files.patterns import is_remote
from clip_jax.files.reading import read_file

IMAGE_COLUMNS = ("image", "filepath", "path", "file_name", "filename", "image_path")
# Of formats whose cells may hold the image itself, as img2dataset and others name it.
ENCODED_IMAGE_COLUMNS = (
    *IMAGE_COLUMNS,
    *("jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes"),
    *("image/encoded", "url", "image_url"),
)
CAPTION_COLUMNS = ("caption", "title", "text")
# Where cells may be lists the plural is as usual; those with "/" are of TFDS.
MANY_CAPTION_COLUMNS = (
    *CAPTION_COLUMNS,
    *("captions", "texts", "sentences", "caption/text", "captions/text"),
)
KEY_COLUMNS = ("key", "__key__")

MAX_CAPTION_BYTES = 4 << 20  # a "caption" beyond this is an accident or an attack
_PROBED_IMAGES = 20  # how many of the first are looked for before anything is trained


@dataclass(frozen=True)
class Columns:
    """The columns of a record, as the data spells them; `captions` in the order of the options.

    `label`: the column of `SourceOptions.label_column`, which may be one of the others, too.
    """

    image: str
    captions: tuple[str, ...]
    key: str | None
    label: str | None = None

    @property
    def used(self) -> set[str]:
        return {self.image, *self.captions} | ({self.key} if self.key is not None else set())


def find_columns(
    where: str,
    names: Sequence[str],
    options: SourceOptions,
    image_columns: Sequence[str] = IMAGE_COLUMNS,
    caption_columns: Sequence[str] = CAPTION_COLUMNS,
) -> Columns:
    """The columns that the options name, or the first with usual names, upper or lower case.

    Raises UserError, which lists the columns present, where there is none; a column of captions may
    be missing where none is named and captions are not needed.
    """
    image = find_column(where, names, options.image_column, image_columns, "image_column")
    captions = find_caption_columns(where, names, options, caption_columns)
    key = next((name for name in KEY_COLUMNS if name in names), None)
    key = key if key not in (image, *captions) else None
    return Columns(image, captions, key, find_label_column(names, options))


def find_caption_columns(
    where: str, names: Sequence[str], options: SourceOptions, known: Sequence[str]
) -> tuple[str, ...]:
    """As in `find_columns`, those of captions; none where some are missing and not needed."""
    try:
        return tuple(
            find_column(where, names, given, known, "caption_column")
            for given in options.caption_columns or (None,)
        )
    except UserError:
        if options.needs_captions:
            raise
        return ()


def find_label_column(names: Sequence[str], options: SourceOptions) -> str | None:
    """The column of labels, as the data spells it; None where none is wanted or there.

    It is matched as the columns of captions are: spelt so, else upper or lower case.
    """
    wanted = options.label_column
    if wanted is None or wanted in names:
        return wanted
    return next((name for name in names if name.lower() == wanted.lower()), None)


def with_label(fields: dict[str, Any], options: SourceOptions) -> dict[str, Any]:
    """The metadata of a record, with its label under the name that the options spell, too."""
    label = find_label_column(tuple(fields), options)
    if label is not None:
        fields.setdefault(options.label_column or label, fields[label])
    return fields


def find_column(
    where: str, names: Sequence[str], given: str | None, known: Sequence[str], option: str
) -> str:
    """As in `find_columns`, one of them."""
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
    """The captions in a cell: text, UTF-8 bytes or a list of these; blank ones are left out.

    Raises CaptionError where there is something else, something without end or no text at all.
    """
    if value is None:
        return []
    if not isinstance(value, (str, bytes)):
        if not isinstance(value, Iterable) or isinstance(value, Mapping):
            raise CaptionError(f"caption is {type(value).__name__}, not text", "row_malformed")
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
    """(captions, weights) of a record, from its cells in the order of the caption columns.

    The captions of one cell share the weight of its column; columns of weight 0 are left out.

    Raises CaptionError where no caption is left; without `needs_captions` there are none, then.
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
    """As `captions_of`; `texts`: of each cell those that can be used."""
    captions = tuple(text for found in texts for text in found)
    if not captions:
        if all(cell is None for cell in cells):
            raise CaptionError("caption is missing", "caption_missing")
        raise CaptionError("caption is empty", "caption_empty")
    if not options.caption_weights:
        return captions, None
    pairs = [
        (text, weight / len(found))
        for weight, found in zip(options.caption_weights, texts, strict=True)
        for text in found
        if weight > 0
    ]
    if not pairs:
        raise CaptionError("all its captions are of columns of weight 0", "caption_empty")
    captions, weights = zip(*pairs, strict=True)
    return captions, weights


def caption_of_class(template: str, class_name: str) -> str:
    """Raises UserError where the template has no place for the name."""
    if "{}" not in template:
        raise UserError(f"caption_template {template!r} has no '{{}}' where the class name goes")
    return template.replace("{}", " ".join(class_name.replace("_", " ").split()))


def image_place(folder: str, value: str) -> str:
    """The path or URL that a cell names: `value` itself, or relative to `folder`."""
    if "://" in value:
        return value
    return f"{folder}/{value}" if is_remote(folder) else os.path.join(folder, value)


def read_image(folder: str, value: str, remote: RemoteOptions) -> bytes:
    """The file that a cell names. Raises DecodeError where it cannot be read."""
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
    """A wrong folder should be one clear line now, not a thousand unreadable images later.

    Raises UserError where none of the first images is there; those of stores are not looked for.
    """
    first = [image_place(folder, image) for image in islice(images, _PROBED_IMAGES)]
    if any(is_remote(place) or os.path.isfile(place.removeprefix("file://")) for place in first):
        return
    raise UserError(
        f"{where}: none of its first images exists (such as {first[0]});"
        f" relative paths are relative to {folder}"
    )


def local_copy(path: str, remote: RemoteOptions) -> Path:
    """The file itself, or its copy in the cache. Raises OSError."""
    if not is_remote(path):
        return Path(path.removeprefix("file://"))
    from clip_jax.files.stores import fetch

    return fetch(path, remote)
