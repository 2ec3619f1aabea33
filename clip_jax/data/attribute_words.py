"""Words for an attribute of people, such as gender: a line of words that stand in for each other.

A file has a line a meaning with a word for each group, "man,woman"; the first line names the groups
by adjectives, "male,female". Prompts and captions are changed by these words.
"""

import os
from pathlib import Path

from clip_jax.errors import UserError

# FairFace's names of races (Karkkainen and Joo 2021), as prompts spell them.
RACES = (
    "black",
    "east asian",
    "indian",
    "latino hispanic",
    "middle eastern",
    "southeast asian",
    "white",
)
# The first line in which a word occurs is the one that counts, as for "her" and "hers".
NAMED_ATTRIBUTES: dict[str, tuple[tuple[str, ...], ...]] = {
    "gender": (
        ("male", "female"),
        ("man", "woman"),
        ("men", "women"),
        ("boy", "girl"),
        ("boys", "girls"),
        ("guy", "lady"),
        ("gentleman", "lady"),
        ("he", "she"),
        ("his", "her"),
        ("him", "her"),
        ("himself", "herself"),
        ("father", "mother"),
        ("dad", "mom"),
        ("son", "daughter"),
        ("brother", "sister"),
        ("husband", "wife"),
    ),
    "race": (RACES,),
}


def attribute_words(name: str, key: str) -> tuple[tuple[str, ...], ...]:
    """Returns lines of as many words each: "gender", "race", or the lines of a file.

    Raises UserError that names `key`: neither a name nor a file, or lines of unequal length.
    """
    if name in NAMED_ATTRIBUTES:
        return NAMED_ATTRIBUTES[name]
    try:
        text = Path(os.path.expanduser(name)).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        accepted = f"accepted are {', '.join(NAMED_ATTRIBUTES)}, or a file of lines like man,woman"
        raise UserError(f"{key}={name!r}: {accepted}") from error
    lines = [tuple(word.strip() for word in x.split(",")) for x in text.splitlines() if x.strip()]
    for line in lines:
        if len(line) < 2 or len(line) != len(lines[0]) or not all(line):
            raise UserError(
                f"{key}={name!r}: line {','.join(line)!r}; accepted are as many words a line, at"
                " least two with commas between"
            )
    if not lines:
        raise UserError(f"{key}={name!r}: has no line; accepted are lines like man,woman")
    return tuple(lines)
