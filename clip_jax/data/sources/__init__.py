"""Opening of a `Source` from a path, with detection of its format.

A new format is a file that implements `clip_jax.data.records.Source`, and a line in `_READERS`.
"""

import fnmatch
import importlib
import logging
import os
import pickle
import re
from itertools import chain
from typing import Any, get_args

from clip_jax.data.options import Format, SourceOptions
from clip_jax.data.records import IMAGE_EXTENSIONS, Source, split_of
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.patterns import is_remote, what_is_wrong

# These formats hold all captions in memory; other formats would fetch them one by one.
_IN_MEMORY = ("csv", "jsonl", "folder", "glyphs")
_LOOKED_AT_CAPTIONS = 1000  # spread over the data; the first two usually differ and end the check

logger = logging.getLogger(__name__)

# Format -> its reader, called with (path, options); imported on first use.
_READERS = {
    "folder": "captioned_folder.open_folder",
    "csv": "table.TableSource",
    "jsonl": "json_lines.JsonLinesSource",
    "parquet": "parquet.ParquetSource",
    "webdataset": "webdataset.WebDatasetSource",
    "array_record": "array_record.ArrayRecordSource",
    "tfds": "tfds.TfdsSource",
    "huggingface": "huggingface.HuggingFaceSource",
    "synthetic": "synthetic.SyntheticSource",
    "glyphs": "glyphs.open_glyphs",
}
FORMATS = get_args(Format)

# Format -> where its images come from, for formats without image columns.
_WITHOUT_COLUMNS = {
    "webdataset": f"the image is the member that ends in {', '.join(IMAGE_EXTENSIONS)}",
    "synthetic": "its images are drawn",
    "glyphs": "its images are drawn",
}

# File name ending -> format.
_ENDINGS = {
    "csv": "csv",
    "tsv": "csv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "txt": "csv",  # such as Flickr8k's captions.txt
    "parquet": "parquet",
    "tar": "webdataset",
    "array_record": "array_record",
    "arrayrecord": "array_record",
}
# Files that show a folder's format, in the order in which they are looked for; names are also
# tried in lower case.
_SIGNS = (
    ("dataset_info.json", "huggingface"),  # with state.json or *.arrow; TFDS also has features.json
    ("dataset_dict.json", "huggingface"),
    ("*.tar", "webdataset"),
    ("*.parquet", "parquet"),
    ("*.array_record*", "array_record"),
)


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
      format: one of `FORMATS`; "auto" detects it from the path.
      options: how the source is read; alternatively
      **changes: fields of `SourceOptions`, such as `caption_column="alt"`.

    Raises:
      UserError: nothing usable or readable there, or an unknown format.
    """
    path = os.fspath(path)
    if format not in FORMATS:
        raise UserError(f"data format {format!r} is unknown; known are {', '.join(FORMATS)}")
    options = SourceOptions(**changes) if options is None else options
    if not path:
        raise UserError("data path is empty; give a folder, a .csv file or .tar files")
    if format not in ("glyphs", "synthetic", "tfds"):
        path = os.path.expanduser(path)
    kind = detect_format(path) if format == "auto" else format
    check_image_column(kind, options)
    module, _, name = _READERS[kind].rpartition(".")
    reader = getattr(importlib.import_module(f"clip_jax.data.sources.{module}"), name)
    try:
        source: Source = reader(path, options)
    except OSError as error:  # such as a folder without read permission
        where = f" ({error.filename})" if error.filename else ""
        reason = error.strerror or error
        raise UserError(f"data path {path} cannot be read: {reason}{where}") from error
    check_split(path, kind, options, source)
    _report_dropped(path, source)
    if options.needs_captions and (kind in _IN_MEMORY or not is_remote(path)):
        # A copy opens its own files, and frees them and what it has read afterwards.
        is_small = kind not in _IN_MEMORY
        _report_one_caption(path, pickle.loads(pickle.dumps(source)) if is_small else source)
    return source


def check_split(path: str, kind: str, options: SourceOptions, source: Source) -> None:
    """Raises UserError if a split is named but the data has none: everything would be read."""
    if options.split is not None and split_of(source) is None:
        raise UserError(
            f"split={options.split!r}: {path} has no splits (it is read as {kind}); leave it out"
        )


def check_image_column(kind: str, options: SourceOptions) -> None:
    """Raises UserError if an image column is named for a format without image columns."""
    if options.image_column is not None and kind in _WITHOUT_COLUMNS:
        raise UserError(
            f"image_column={options.image_column!r}: data of format {kind} has no such columns"
            f" ({_WITHOUT_COLUMNS[kind]}); leave it out"
        )


def detect_format(path: str) -> str:
    """Detects the format of the data at `path`. Raises UserError if it is unknown."""
    # os.path is used because pathlib raises OSError for long names, such as lists of many files.
    if os.path.isdir(path):
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(f"data path {path} cannot be read: permission denied")
        signs = ("features.json", "dataset_info.json")
        if all(os.path.isfile(os.path.join(path, sign)) for sign in signs):
            return "tfds"
        names = os.listdir(path)
        names += [name.lower() for name in names if "." in name]
        return next((kind for sign, kind in _SIGNS if fnmatch.filter(names, sign)), "folder")
    # The ending of the pattern, list or file name shows the format.
    name = re.split(r"[?#]", path)[0] if "://" in path else path
    ending = name.rstrip("/}*").rpartition(".")[2].lower().partition("-")[0]
    is_pattern = any(sign in path for sign in "*?[{,") or "://" in path
    if ending in _ENDINGS and (is_pattern or os.path.isfile(path)):
        return _ENDINGS[ending]
    if is_pattern:
        return "webdataset"
    if os.path.exists(path):
        raise UserError(
            f"data path {path}: unknown kind of file; accepted are a folder and files that end in"
            f" {', '.join('.' + ending for ending in _ENDINGS)}"
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
