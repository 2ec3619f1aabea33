"""Which files a path to data means, where its format is one of whole files."""

import os

from clip_jax.data.sources import detect_format
from clip_jax.files.patterns import expand_paths, is_remote

_ENDINGS = {"webdataset": ".tar", "array_record": ".array_record", "parquet": ".parquet"}


def local_files(path: str, format: str) -> list[str]:
    """The files on this machine that `open_source` reads; of a folder of images, a dataset of
    another library, or a store: []."""
    path = os.path.expanduser(path)
    kind = detect_format(path) if format == "auto" else format
    if kind in _ENDINGS:
        return [name for name in expand_paths(path, _ENDINGS[kind]) if not is_remote(name)]
    return [path] if os.path.isfile(path) else []
