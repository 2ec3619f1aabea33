"""Files of a data path, for formats that consist of whole files."""

import os

from clip_jax.data.sources import reader_of
from clip_jax.files.patterns import expand_paths, is_remote


def local_files(path: str, format: str) -> list[str]:
    """The local files that `open_source` reads; [] for a folder of images, another library's
    dataset, or a remote store."""
    path = os.path.expanduser(path)
    reader = reader_of(path, format)
    if reader.files == "files" and reader.endings:
        names = expand_paths(path, f".{reader.endings[0]}")
        return [name for name in names if not is_remote(name)]
    return [path] if os.path.isfile(path) else []
