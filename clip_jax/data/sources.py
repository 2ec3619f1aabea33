"""From a path to a `Source`: which format lies there is seen on disk.

A new format is a file that implements `clip_jax.data.records.Source`, and a line in `open_source`.
"""

import logging
import os
from collections import Counter
from pathlib import Path

from clip_jax.data.folder import FolderSource
from clip_jax.data.records import Source
from clip_jax.data.table import TableSource
from clip_jax.data.webdataset import WebDatasetSource, expand_paths
from clip_jax.errors import UserError

logger = logging.getLogger(__name__)

FORMATS = ("auto", "folder", "csv", "webdataset", "glyphs")


def open_source(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    caption_template: str = "a photo of a {}.",
) -> Source:
    """Opens image-text data.

    Args:
      path: a folder of images (`.txt` captions or class-named subfolders); a `.csv` or `.tsv` file;
        one `.tar`, a folder of them, a glob, a brace pattern `{00000..00006}.tar`, a comma list;
        with `format="glyphs"` the split of the embedded dataset, such as "train" or "test".
      format: one of `FORMATS`; "auto" looks at what is on disk.
      image_column, caption_column: of a CSV; by default found by their usual names.
      caption_template: of class-named subfolders; `{}` becomes the class name.

    Raises:
      UserError: nothing usable there, or an unknown format.
    """
    path = os.fspath(path)
    if format not in FORMATS:
        raise UserError(f"data format {format!r} is unknown; known are {', '.join(FORMATS)}")
    source: Source
    if format == "glyphs":
        from clip_jax.data.glyphs import open_glyphs

        return open_glyphs(path)
    if not path:
        raise UserError("data path is empty; give a folder, a .csv file or .tar files")
    path = os.path.expanduser(path)
    kind = _detect(path) if format == "auto" else format
    if kind == "folder":
        source = FolderSource(path, caption_template=caption_template)
    elif kind == "csv":
        source = TableSource(path, image_column=image_column, caption_column=caption_column)
    else:
        source = WebDatasetSource(expand_paths(path))
    _report_dropped(path, source)
    return source


def _detect(path: str) -> str:
    if "://" in path:
        raise UserError(f"data path {path} is remote; give a local path (copy or mount it first)")
    on_disk = Path(path)
    if on_disk.is_dir():
        return "webdataset" if any(on_disk.glob("*.tar")) else "folder"
    # A pattern or list shows by the name of its files; a single file by its own.
    ending = path.rpartition(".")[2].lower()
    if ending in ("csv", "tsv") and on_disk.is_file():
        return "csv"
    if ending == "tar" or any(sign in path for sign in "*{,"):
        return "webdataset"
    if on_disk.exists():
        raise UserError(
            f"data path {path}: unknown kind of file; give a folder, .csv, .tsv or .tar"
        )
    raise UserError(f"data path {path} does not exist; give a folder, a .csv file or .tar files")


def _report_dropped(path: str, source: Source) -> None:
    if not source.dropped:
        return
    reasons = Counter(source.dropped.values()).most_common(3)
    key, reason = next(iter(source.dropped.items()))
    logger.warning(
        "%s: %d samples kept, %d dropped (%s); the first is %s: %s",
        path,
        len(source),
        len(source.dropped),
        ", ".join(f"{count} x {why}" for why, count in reasons),
        key,
        reason,
    )
