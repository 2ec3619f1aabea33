"""Reasons why members of a tar file make no sample, with advice on what to change."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from clip_jax.data.records import IMAGE_EXTENSIONS

_EXPLAINED = 1000  # drops per archive with a detailed reason: an index may have millions
_SHOWN_ENDINGS = 8
_EXPECTED = {"txt", "json", "cls"}
_IMAGES = ", ".join(f".{name}" for name in IMAGE_EXTENSIONS)
_HALVES = {"image_missing", "caption_missing"}


class Dropped(NamedTuple):
    """Adjacent members of one key that make no sample."""

    key: str
    kind: str
    reason: str
    start: int  # byte of the first header
    endings: tuple[str, ...]  # of its members, in order


class Used(NamedTuple):
    """A usable sample of the archive."""

    key: str
    image: int  # byte of its content
    endings: tuple[str, ...]  # of its other members


def without_image(key: str, endings: Sequence[str], count: int) -> list[tuple[str, str]]:
    """Returns (key, reason) of members without an image; `count`: earlier drops of the archive.

    Names with dots before the ending, such as x.1.jpg and x.2.jpg, share a key: each such image
    is a drop of its own.
    """
    found: list[tuple[str, str]] = []
    for ending in endings:
        middle, _, last = ending.rpartition(".")
        if not middle or last not in IMAGE_EXTENSIONS:
            continue
        reason = "no complete image member: its name has dots before the ending"
        if count + len(found) < _EXPLAINED:
            better = f"{key.rpartition('/')[2]}_{middle.replace('.', '_')}.{last}"
            reason += (
                f", and keys end at the first dot: {key + '.' + ending!r} is key {key!r} with the"
                f" ending {ending!r}; rename it, as to {better}"
            )
        found.append((f"{key}.{middle}", reason))
    if found:
        return found
    reason = "no complete image member"
    if set(endings) - _EXPECTED and count < _EXPLAINED:
        reason += f" (there are {_shown(endings)}; images end in {_IMAGES})"
    return [(key, reason)]


def without_caption(reason: str, endings: Sequence[str], count: int) -> str:
    """Returns the reason, with other endings that may hold the caption; `count`: as above."""
    others = [name for name in endings if name not in {*_EXPECTED, *IMAGE_EXTENSIONS}]
    if not others or count >= _EXPLAINED:
        return reason
    there = f"there are {_shown(others)}: the one that holds it can be named as caption_column"
    return f"{reason}; {there}"


def _shown(endings: Sequence[str]) -> str:
    names = [f".{ending}" if ending else "a name without ending" for ending in endings]
    more = [f"{len(names) - _SHOWN_ENDINGS} more"] if len(names) > _SHOWN_ENDINGS else []
    return ", ".join([*names[:_SHOWN_ENDINGS], *more])


def join_apart(drops: list[Dropped], samples: Iterable[Used]) -> list[Dropped]:
    """Returns the drops, merging separated parts of one sample into one drop.

    `samples` is read only if a part without an image may belong to one of them.
    """
    parts: dict[str, list[int]] = defaultdict(list)
    for number, drop in enumerate(drops):
        if drop.kind in _HALVES and drop.endings:  # empty: all its members are cut off
            parts[drop.key].append(number)
    joined: dict[int, Dropped | None] = {}
    lonely: dict[str, int] = {}  # key -> its drop without image, if no drop of that key has one
    for key, numbers in parts.items():
        image = next((n for n in numbers if drops[n].kind == "caption_missing"), None)
        if image is None:
            lonely[key] = numbers[0]
            continue
        rest = [n for n in numbers if drops[n].kind == "image_missing"]
        if rest:
            places = ", ".join(
                f"{_shown(drops[n].endings)} at byte {drops[n].start}" for n in (image, *rest)
            )
            joined |= dict.fromkeys(rest)
            joined[image] = drops[image]._replace(reason=_apart(key, places))
    for key, at, endings in samples if lonely else ():
        if key not in lonely:
            continue
        drop = drops[lonely[key]]
        if not set(drop.endings) & set(endings):  # otherwise it is a second sample of that key
            places = f"the image at byte {at}, {_shown(drop.endings)} at byte {drop.start}"
            joined[lonely[key]] = drop._replace(reason=_apart(key, places))
    result = (joined.get(number, drop) for number, drop in enumerate(drops))
    return [drop for drop in result if drop is not None]


def _apart(key: str, places: str) -> str:
    return (
        f"the members of key {key!r} lie apart in the archive ({places}); write those of a sample"
        " next to each other, as tar --sort=name does"
    )
