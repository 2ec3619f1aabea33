"""clip-benchmark's layout of a set: tars by split, with class names and templates beside.

    ROOT/{split}/nshards.txt, 0.tar, 1.tar, …    KEY.{webp,png,jpg,jpeg} with .cls, .npy or .txt
    ROOT/classnames.txt, zeroshot_classification_templates.txt, dataset_type.txt

A `.cls` is the number of a line of classnames.txt, a `.npy` holds a number a class (or, beside a
`.cls`, other fields of the image), a `.txt` has a caption a line.
Source: webdataset_builder.py of clip-benchmark 1.6.2.
"""

import dataclasses
import hashlib
import os
from pathlib import Path

from clip_jax.data.options import CaptionOptions
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.files.disk import write_text
from clip_jax.files.options import RemoteOptions
from clip_jax.files.patterns import is_remote
from clip_jax.files.stores import Unavailable, cache_folder, read_bytes, told

SHARDS, CLASSES = "nshards.txt", "classnames.txt"
TEMPLATES, TYPE = "zeroshot_classification_templates.txt", "dataset_type.txt"
# Kind of a set -> the word of dataset_type.txt that fits it; without the file "classification".
_TYPES = {
    "zero_shot": "classification",
    "multilabel": "multilabel",
    "retrieval": "retrieval",
    "compositional": "retrieval",
}
_LABELS = {"zero_shot": "cls", "multilabel": "npy"}


def read_layout(root: str, kind: str, split: str, data: TaskData) -> TaskData | None:
    """Returns `data` with the path of a split's tars, and how their labels and captions are read.

    Class names and templates are those of `data`, or else the files beside. None if there is no
    nshards.txt of this split.

    Args:
      root: folder or URL of the set.
      kind: of `EvaluationSet`.

    Raises UserError: the split is not among those there, nshards.txt is no number, tars are
    missing, or the set is of another type.
    """
    remote = data.remote
    shards = _text(f"{root}/{split}/{SHARDS}", remote)
    if shards is None:
        others = [] if is_remote(root) else sorted(Path(root).glob(f"*/{SHARDS}"))
        if others:
            names = ", ".join(each.parent.name for each in others)
            raise UserError(f"{root}: has no split {split!r}; its splits are: {names}")
        return None
    if not shards.strip().isdecimal() or int(shards) < 1:
        raise UserError(f"{root}/{split}/{SHARDS}: {shards.strip()[:20]!r} is no number of tars")
    found = (_text(f"{root}/{TYPE}", remote) or "classification").strip().lower()
    if found != _TYPES.get(kind):
        wanted = _TYPES.get(kind, "in clip-benchmark's layout")
        raise UserError(f"{root}/{TYPE}: is {found!r}, but the set is {wanted}")
    if is_remote(root):
        path = f"{root}/{split}/{{0..{int(shards) - 1}}}.tar"
    else:
        path = str(Path(root, split))
        there = sum(name.endswith(".tar") for name in os.listdir(path))
        if there != int(shards):
            raise UserError(f"{path}: has {there} tars, but {SHARDS} says {int(shards)}")
    changes: dict[str, object] = {"path": path, "format": "webdataset", "split": None}
    if kind in _LABELS:
        changes |= {"label_key": _LABELS[kind], "labels": "numbers"}
        changes["classnames"] = data.classnames or _file(f"{root}/{CLASSES}", remote)
        templates = _text(f"{root}/{TEMPLATES}", remote)
        if data.templates == TaskData.templates and templates is not None:
            # clip-benchmark writes "{c}" where the class name goes.
            changes["templates"] = cached_text(TEMPLATES, templates.replace("{c}", "{}"))
    else:
        changes["captions"] = CaptionOptions(lines=True)
    return dataclasses.replace(data, **changes)  # type: ignore[arg-type]


def lines_of(root: str, name: str, remote: RemoteOptions) -> list[str] | None:
    """Returns the stripped lines of a file beside the splits; None if there is none."""
    text = _text(f"{root}/{name}", remote)
    return None if text is None else [line.strip() for line in text.splitlines()]


def cached_text(name: str, text: str) -> str:
    """Writes a small file into the cache, under a name with the hash of what it holds; its path."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    stem, ending = os.path.splitext(name)
    path = cache_folder() / "sets" / f"{stem.replace('/', '-')}-{digest}{ending}"
    if not path.is_file():
        with told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
    return str(path)


def _file(place: str, remote: RemoteOptions) -> str | None:
    """Returns the local path of a file or of a copy; None if there is none."""
    if not is_remote(place):
        return place if os.path.isfile(place) else None
    text = _text(place, remote)
    return None if text is None else cached_text(place.rpartition("/")[2], text)


def _text(place: str, remote: RemoteOptions) -> str | None:
    """Returns what a UTF-8 file holds; None if there is none. Raises UserError."""
    try:
        data = read_bytes(place, remote) if is_remote(place) else Path(place).read_bytes()
        return data.decode("utf-8-sig")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Unavailable as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{place} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{place} is not UTF-8 text: {error}") from error
