"""Local files of a source, and their state, to detect changes since an earlier run."""

import hashlib
import os
from collections.abc import Iterator, Sequence

from clip_jax.data.options import SourceConfig
from clip_jax.data.records import Source
from clip_jax.data.sources import reader_of
from clip_jax.data.sources.columns import image_place
from clip_jax.data.sources.refine import RefinedSource
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


def state_of_files(source: Source, parts: Sequence[SourceConfig]) -> str | None:
    """Hash of name, size and modification time of the local files that `source` reads, including
    separate image files; None if it reads none. The fingerprint does not cover images.

    `parts`: the configuration of the source, or of each source of a mixture.
    """
    digest, count = hashlib.blake2b(digest_size=16), 0
    for part, config in zip(getattr(source, "sources", (source,)), parts, strict=True):
        inner = part.source if isinstance(part, RefinedSource) else part
        for name, place in _files(inner, os.path.expanduser(config.path), config.format):
            try:
                found = os.stat(place)
            except OSError:
                continue  # a missing image is reported when it is read
            state = f"{name}\0{found.st_size}\0{found.st_mtime_ns}\0"
            digest.update(state.encode("utf-8", "surrogatepass"))
            count += 1
    return digest.hexdigest() if count else None


def _files(source: Source, path: str, format: str) -> Iterator[tuple[str, str]]:
    """Yields (name independent of how the path was given, path) of each file."""
    if is_remote(path):
        return
    reader = reader_of(path, format)
    for file in local_files(path, reader.name):
        yield os.path.basename(file), file
    if reader.files == "images":  # keys are paths, relative to the folder or to the file's folder
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        for index in range(len(source)):
            key = source.key(index)
            place = image_place(folder, key).removeprefix("file://")
            if not is_remote(place):
                yield key, place
    elif reader.files == "folder":
        for folder, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                place = os.path.join(folder, name)
                yield os.path.relpath(place, path), place
