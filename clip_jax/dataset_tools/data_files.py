"""Files of a data path, for formats that consist of whole files."""

import os

from clip_jax.data.sources import detect_format
from clip_jax.files.patterns import expand_paths, is_remote

_ENDINGS = {"webdataset": ".tar", "array_record": ".array_record", "parquet": ".parquet"}


def local_files(path: str, format: str) -> list[str]:
    """The local files that `open_source` reads; [] for a folder of images, another library's
    dataset, or a remote store."""
    path = os.path.expanduser(path)
    kind = detect_format(path) if format == "auto" else format
    if kind in _ENDINGS:
        return [name for name in expand_paths(path, _ENDINGS[kind]) if not is_remote(name)]
    return [path] if os.path.isfile(path) else []
