"""Choice of the split to read from a dataset that has several."""

import logging
import os
import re
from collections.abc import Sequence

from clip_jax.data.options import SourceOptions
from clip_jax.errors import UserError
from clip_jax.files.patterns import expand_paths, is_remote

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
SPLIT_NAMES = tuple(_ALIASES)


def is_split_name(name: str) -> bool:
    """Returns whether this is the name of a split, such as "train" or "Val"."""
    return name.lower() in _ALIASES


def is_for_training(name: str) -> bool:
    """Returns whether this is the name of the training split."""
    return _ALIASES.get(name.lower()) == "train"


def choose_split(
    where: str, names: Sequence[str], wanted: str | None, preferred: Sequence[str]
) -> str:
    """Returns the member of `names` to read; "val", "valid", "dev" and "validation" are the same,
    as are "train" and "training", "test" and "testing".

    This is `wanted` if given; otherwise the first of `preferred` that exists, else the training
    split, else the only split.

    Args:
      where: the data, for messages.
      names: the existing splits, at least one.
      wanted: the split that the user named, or None.
      preferred: the splits that the program prefers, the best first.

    Raises:
      UserError: `wanted` is not among `names`, or none of several is preferred.
    """
    if wanted is not None:
        found = find_split(names, wanted)
        if found is None:
            raise _none_such(where, names, wanted)
        return found
    for name in (*preferred, "train"):
        found = find_split(names, name)
        if found is not None:
            return found
    if len(names) == 1:
        return names[0]
    raise _none_such(where, names, preferred[0])


def _none_such(where: str, names: Sequence[str], wanted: str) -> UserError:
    return UserError(
        f"{where} has no split {wanted!r}; its splits are: {', '.join(names)}; name one with split"
    )


def find_split(names: Sequence[str], wanted: str) -> str | None:
    """Returns the member of `names` that equals `wanted`: exactly, else ignoring case, else by an
    alias; None if there is none."""
    if wanted in names:
        return wanted
    lowered = wanted.lower()
    in_any_case = next((name for name in names if name.lower() == lowered), None)
    if in_any_case is not None or lowered not in _ALIASES:
        return in_any_case
    meant = _ALIASES[lowered]
    return next((name for name in names if _ALIASES.get(name.lower()) == meant), None)


def source_files(path: str, ending: str, options: SourceOptions) -> tuple[list[str], str | None]:
    """Returns (files that `path` means, their split or None); of a folder whose files are named by
    split, those of one split.

    Raises UserError as `expand_paths` and `choose_split` do.
    """
    files = expand_paths(path, ending, options.remote)
    is_folder = os.path.isdir(path) or (is_remote(path) and files != [path])
    if not is_folder or any(sign in path for sign in "*?[{,"):
        return files, None
    return files_of_split(path, files, options)


def files_of_split(
    folder: str, paths: Sequence[str], options: SourceOptions
) -> tuple[list[str], str | None]:
    """Returns (files of one split, its name), for a folder of files that are named by split.

    Examples are "train-00000-of-00002.parquet" and "coco_val.tar": each name contains one split
    name, and there are several splits. In other folders all files are read; the name is None.

    Raises UserError as `choose_split` does.
    """
    names = [_split_in(os.path.basename(path)) for path in paths]
    splits = list(dict.fromkeys(name for name in names if name is not None))
    if len(splits) < 2 or None in names:
        return list(paths), None
    split = choose_and_say(folder, splits, options)
    return [path for path, name in zip(paths, names, strict=True) if name == split], split


def choose_and_say(where: str, names: Sequence[str], options: SourceOptions) -> str:
    """Calls `choose_split` with the options; warns which one it is if the user named none."""
    split = choose_split(where, names, options.split, options.preferred_splits)
    if options.split is None and len(names) > 1:
        logger.warning("%s: its split %r is read, of %s", where, split, ", ".join(names))
    return split


def _split_in(name: str) -> str | None:
    """Returns the split name in a file's name; None for no such word, or several."""
    words = [word for word in re.split(r"[^A-Za-z]+", name) if is_split_name(word)]
    return words[0] if len(words) == 1 else None
