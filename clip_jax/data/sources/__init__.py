"""Opening of a `Source` from a path, with detection of its format.

A format is a file in this folder with a `READER` (`clip_jax.data.records.Reader`).
"""

import fnmatch
import functools
import importlib
import logging
import os
import pickle
import pkgutil
import re
import types
from collections.abc import Mapping
from itertools import chain
from typing import Any

from clip_jax.data.options import SourceOptions
from clip_jax.data.records import Reader, Source, split_of
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.patterns import is_pattern, is_remote, what_is_wrong

_LOOKED_AT_CAPTIONS = 1000  # spread over the data; the first two usually differ and end the check

logger = logging.getLogger(__name__)


def formats() -> Mapping[str, Reader]:
    """Returns the reader of each format by its name: `READER` of the files in this folder."""
    return _readers_in(tuple(__path__))


@functools.cache
def _readers_in(folders: tuple[str, ...]) -> Mapping[str, Reader]:
    modules = (
        importlib.import_module(f"{__name__}.{module.name}")
        for module in pkgutil.iter_modules(folders)
    )
    readers = [module.READER for module in modules if hasattr(module, "READER")]
    readers.sort(key=lambda reader: reader.name)
    return types.MappingProxyType({reader.name: reader for reader in readers})


def check_format(format: str, where: str = "data format") -> None:
    """Raises UserError, which begins with `where`, if a format is unknown."""
    known = ("auto", *formats())
    if format not in known:
        raise UserError(f"{where} {format!r} is unknown; known are {', '.join(known)}")


def reader_of(path: str, format: str = "auto") -> Reader:
    """Returns the reader of data. Raises UserError if `format` or the data's format is unknown."""
    check_format(format)
    return formats()[detect_format(path) if format == "auto" else format]


def open_source(
    path: str | os.PathLike[str],
    format: str = "auto",
    options: SourceOptions | None = None,
    **changes: Any,
) -> Source:
    """Opens image-text data.

    Args:
      path: a folder of images (`.txt` captions, a table of captions, or class-named subfolders);
        `.csv`, `.tsv`, `.jsonl`, `.parquet`, `.array_record` or `.tar` files: one, a glob, a brace
        pattern `{00000..00006}.tar`, a comma list, local or remote (`gs://`, `s3://`, `hf://`,
        `https://`), or a folder of them (for tables, name the format); a folder written by
        `datasets.save_to_disk` or TFDS; with `format="tfds"` also the name of a TFDS dataset;
        with `format="glyphs"` the split of the embedded dataset, such as "train" or "test"; with
        `format="synthetic"` a number of records.
      format: a name that `formats` has; "auto" detects it from the path.
      options: how the source is read; alternatively
      **changes: fields of `SourceOptions`, such as `caption_column="alt"`.

    Raises:
      UserError: nothing usable or readable there, or an unknown format.
    """
    path = os.path.expanduser(os.fspath(path))
    options = SourceOptions(**changes) if options is None else options
    if not path:
        raise UserError("data path is empty; give a folder, a .csv file or .tar files")
    reader = reader_of(path, format)
    check_image_column(reader, options)
    try:
        source = reader.open(path, options)
    except OSError as error:  # such as a folder without read permission
        where = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or error
        raise UserError(f"data path {path} cannot be read: {reason}{where}") from error
    check_split(path, reader, options, source)
    _report_dropped(path, source)
    if options.needs_captions and (reader.in_memory or not is_remote(path)):
        # A copy opens its own files, and frees them and what it has read afterwards.
        copied = source if reader.in_memory else pickle.loads(pickle.dumps(source))
        _report_one_caption(path, copied)
    return source


def check_split(path: str, reader: Reader, options: SourceOptions, source: Source) -> None:
    """Raises UserError if a split is named but the data has none: everything would be read."""
    if options.split is not None and split_of(source) is None:
        raise UserError(
            f"split={options.split!r}: {path} has no splits (it is read as {reader.name});"
            " leave it out"
        )


def check_image_column(reader: Reader, options: SourceOptions) -> None:
    """Raises UserError if an image column is named for a format without image columns."""
    if options.image_column is not None and reader.no_columns:
        raise UserError(
            f"image_column={options.image_column!r}: data of format {reader.name} has no such"
            f" columns ({reader.no_columns}); leave it out"
        )


def detect_format(path: str) -> str:
    """Detects the format of the data at `path`. Raises UserError if it is unknown."""
    readers = formats().values()
    # os.path is used because pathlib raises OSError for long names, such as lists of many files.
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(f"data path {path} cannot be read: permission denied")
        names = os.listdir(path)
        names += [name.lower() for name in names if "." in name]
        found = [
            reader
            for reader in readers
            if any(all(fnmatch.filter(names, sign) for sign in group) for group in reader.signs)
        ]
        return max(found, key=lambda reader: reader.rank).name if found else "folder"
    # The ending of the pattern, list or file name shows the format.
    name = re.split(r"[?#]", path)[0] if "://" in path else path
    ending = name.rstrip("/}*").rpartition(".")[2].lower().partition("-")[0]
    may_be_several = is_pattern(path) or "://" in path
    by_ending = {ending: reader.name for reader in readers for ending in reader.endings}
    if ending in by_ending and (may_be_several or os.path.isfile(path)):
        return by_ending[ending]
    if may_be_several:
        return "webdataset"
    if os.path.exists(path):
        raise UserError(
            f"data path {path}: unknown kind of file; accepted are a folder and files that end in"
            f" {', '.join('.' + ending for ending in by_ending)}"
        )
    problem = what_is_wrong(path)
    raise UserError(f"data path {path} {problem}; give a folder, a .csv file or .tar files")


def _report_dropped(path: str, source: Source) -> None:
    dropped = source.dropped
    if not dropped.total:
        return
    key, reason = next(iter(dropped.items()))
    logger.warning(
        "%s: %d samples kept, %d dropped (%s); the first is %s: %s",
        path,
        len(source),
        dropped.total,
        ", ".join(f"{count} x {kind}" for kind, count in dropped.counts.most_common(3)),
        key,
        reason,
    )


def _report_one_caption(path: str, source: Source) -> None:
    """Warns if all images have the same caption: there is nothing to learn from such data."""
    size = len(source)
    if size < 2:
        return
    first: str | None = None
    looked_at = 0
    # The last one is read first: data is often sorted by class, so that the first two are alike.
    step = max(1, size // _LOOKED_AT_CAPTIONS)
    for index in chain((size - 1,), range(0, size - 1, step)):
        try:
            captions = source.captions(index)
        except DecodeError:
            continue
        looked_at += 1
        for caption in captions:
            if first is not None and caption != first:
                return
            first = caption
    if looked_at > 1:
        which = "all" if looked_at == size else f"all {looked_at:,} that were looked at of"
        logger.warning(
            "%s: %s %d images have one caption, %r: a model learns nothing from them; check that"
            " this is where their captions are",
            path,
            which,
            size,
            first,
        )
