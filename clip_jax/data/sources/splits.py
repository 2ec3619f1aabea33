"""Choice of the split to read from a dataset that has several."""

import logging
import os
import re
from collections.abc import Sequence

from clip_jax.data.options import SourceOptions
from clip_jax.errors import UserError
from clip_jax.files.patterns import expand_paths, has_ending, is_pattern, is_remote

logger = logging.getLogger(__name__)

# Folders and datasets use several names for the same split.
_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def is_split_name(name: str) -> bool:
    """Returns whether this is the name of a split, such as "train" or "Val"."""
    return name.lower() in _ALIASES


def is_for_training(name: str) -> bool:
    """Returns whether this is the name of the training split."""
    return _ALIASES.get(name.lower()) == "train"


def is_for_tests(name: str) -> bool:
    """Returns whether this is the name of the test split."""
    return _ALIASES.get(name.lower()) == "test"


def find_split(names: Sequence[str], wanted: str) -> str | None:
    """Returns the member of `names` that equals `wanted`: exactly, else ignoring case, else as
    another name of the same split ("val", "valid", "dev" and "validation" are the same); None if
    there is none."""
    if wanted in names:
        return wanted
    lowered = wanted.lower()
    in_any_case = next((name for name in names if name.lower() == lowered), None)
    if in_any_case is not None or lowered not in _ALIASES:
        return in_any_case
    meant = _ALIASES[lowered]
    return next((name for name in names if _ALIASES.get(name.lower()) == meant), None)


def source_files(
    path: str, endings: Sequence[str], options: SourceOptions
) -> tuple[list[str], str | None]:
    """Returns (files that `path` means, their split or None); of a folder whose files are named by
    split, those of one split.

    Args:
      endings: endings of the files to look for in a folder, such as ".tar"; the usual one first.

    Raises UserError as `expand_paths` and `choose_split` do.
    """
    if os.path.isdir(path):
        names = os.listdir(path)
        there = [ending for ending in endings if any(has_ending(name, ending) for name in names)]
        found = [
            name
            for ending in there or endings[:1]
            for name in expand_paths(path, ending, options.remote)
        ]
        return files_of_split(path, found, options)
    ending = next((ending for ending in endings if ending in path.lower()), endings[0])
    files = expand_paths(path, ending, options.remote)
    if is_remote(path) and files != [path] and not is_pattern(path):
        return files_of_split(path, files, options)
    return files, None


def files_of_split(
    folder: str, paths: Sequence[str], options: SourceOptions
) -> tuple[list[str], str | None]:
    """Returns (files of one split, its name), for a folder of files that are named by split.

    Examples are "train-00000-of-00002.parquet" and "coco_val.tar": each name contains one split
    name, and there are several splits. In other folders all files are read; the name is None.

    Raises UserError as `choose_split` does.
    """
    names = [split_in(os.path.basename(path)) for path in paths]
    splits = list(dict.fromkeys(name for name in names if name is not None))
    if len(splits) < 2 or None in names:
        return list(paths), None
    split = choose_split(folder, splits, options)
    return [path for path, name in zip(paths, names, strict=True) if name == split], split


def choose_split(where: str, names: Sequence[str], options: SourceOptions) -> str:
    """Returns the member of `names` to read, and warns which one it is if the user named none.

    This is the split of the options if given; otherwise the first of `preferred_splits` that
    exists, else the training split, else the only split.

    Raises UserError, which begins with `where`, if it is not there.
    """
    wanted = (*options.preferred_splits, "train") if options.split is None else (options.split,)
    found = (find_split(names, name) for name in wanted)
    split = next((name for name in found if name is not None), None)
    if split is None and options.split is None and len(names) == 1:
        split = names[0]
    if split is None:
        raise UserError(
            f"{where} has no split {wanted[0]!r}; its splits are: {', '.join(names)}; name one with"
            " split"
        )
    if options.split is None and len(names) > 1:
        logger.warning("%s: its split %r is read, of %s", where, split, ", ".join(names))
    return split


def split_in(name: str) -> str | None:
    """Returns the split's word in a file's or folder's name; None for no such word, or several."""
    words = [word for word in re.split(r"[^A-Za-z]+", name) if is_split_name(word)]
    return words[0] if len(words) == 1 else None
