"""Which split of a dataset is read, where it has several."""

from collections.abc import Sequence

from clip_jax.errors import UserError

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


def choose_split(
    where: str, names: Sequence[str], wanted: str | None, preferred: Sequence[str]
) -> str:
    """The member of `names` that is to be read; "val", "valid", "dev" and "validation" are the
    same, as are "train" and "training", "test" and "testing".

    With `wanted`: that one. Otherwise the first of `preferred` that is there, else the one for
    training, else the first.

    Args:
      where: the data, for messages.
      names: the splits that are there, at least one.
      wanted: the split that the user named; None for none.
      preferred: the splits that the program would rather have, the best first.

    Raises:
      UserError: `wanted` is not among `names`.
    """
    if wanted is not None:
        found = _find(names, wanted)
        if found is None:
            raise UserError(
                f"{where} has no split {wanted!r}; its splits are {', '.join(names)}"
                " (name one with split)"
            )
        return found
    for name in (*preferred, "train"):
        found = _find(names, name)
        if found is not None:
            return found
    return names[0]


def _find(names: Sequence[str], wanted: str) -> str | None:
    """`wanted` among `names`: spelt so, else in another case, else by an alias."""
    if wanted in names:
        return wanted
    lowered = wanted.lower()
    in_any_case = next((name for name in names if name.lower() == lowered), None)
    if in_any_case is not None or lowered not in _ALIASES:
        return in_any_case
    meant = _ALIASES[lowered]
    return next((name for name in names if _ALIASES.get(name.lower()) == meant), None)
