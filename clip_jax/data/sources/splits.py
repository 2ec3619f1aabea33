"""Which split of a dataset is read, where it has several."""

import logging
import os
import re
from collections.abc import Sequence

from clip_jax.data.options import SourceOptions
from clip_jax.errors import UserError
from clip_jax.files.patterns import expand_paths, is_remote

logger = logging.getLogger(__name__)

# Usual names of the same split, as folders and datasets spell them.
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
    """Whether a folder of this name holds a split, such as "train" or "Val"."""
    return name.lower() in _ALIASES


def is_for_training(name: str) -> bool:
    """Whether the split is the one that models are trained on."""
    return _ALIASES.get(name.lower()) == "train"


def choose_split(
    where: str, names: Sequence[str], wanted: str | None, preferred: Sequence[str]
) -> str:
    """The member of `names` that is to be read; "val", "valid", "dev" and "validation" are the
    same, as are "train" and "training", "test" and "testing".

    With `wanted`: that one. Otherwise the first of `preferred` that is there, else the one for
    training, else the only one.

    Args:
      where: the data, for messages.
      names: the splits that are there, at least one.
      wanted: the split that the user named; None for none.
      preferred: the splits that the program would rather have, the best first.

    Raises:
      UserError: `wanted` is not among `names`, or none is preferred of several.
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
    """Returns `wanted` as `names` has it: spelt so, else in another case, else by an alias."""
    if wanted in names:
        return wanted
    lowered = wanted.lower()
    in_any_case = next((name for name in names if name.lower() == lowered), None)
    if in_any_case is not None or lowered not in _ALIASES:
        return in_any_case
    meant = _ALIASES[lowered]
    return next((name for name in names if _ALIASES.get(name.lower()) == meant), None)


def source_files(path: str, ending: str, options: SourceOptions) -> tuple[list[str], str | None]:
    """(the files of a source, the split that they are): those that `path` means, or of a folder
    whose files are named by split those of one.

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
    """(the files of one split, its name) of a folder of files that are named by split.

    Such are "train-00000-of-00002.parquet" and "coco_val.tar": each name has the word for one split
    in it, and there are several splits. Of other files all are read; the name is None then.

    Raises UserError as `choose_split` does.
    """
    names = [_split_in(os.path.basename(path)) for path in paths]
    splits = list(dict.fromkeys(name for name in names if name is not None))
    if len(splits) < 2 or None in names:
        return list(paths), None
    split = choose_and_say(folder, splits, options)
    return [path for path, name in zip(paths, names, strict=True) if name == split], split


def choose_and_say(where: str, names: Sequence[str], options: SourceOptions) -> str:
    """`choose_split` by the options; a warning says which it is where the user named none."""
    split = choose_split(where, names, options.split, options.preferred_splits)
    if options.split is None and len(names) > 1:
        logger.warning("%s: its split %r is read, of %s", where, split, ", ".join(names))
    return split


def _split_in(name: str) -> str | None:
    """The word for a split in a file's name; None for no such word, or several."""
    words = [word for word in re.split(r"[^A-Za-z]+", name) if is_split_name(word)]
    return words[0] if len(words) == 1 else None
