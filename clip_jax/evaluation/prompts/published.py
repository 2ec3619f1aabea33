"""Class names and templates that were published for evaluation sets, read from the files beside.

Each file in `published/` names its source. A class is one text, or a list: what the data call it,
then its names in prompts; a list without names is a class that is not evaluated.
"""

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

_FOLDER = Path(__file__).parent / "published"


class ClassNames(NamedTuple):
    """One class: `label`, as data spell it, and `names`, as prompts do.

    Several names share the class; without any it is not evaluated, and its records are left out.
    """

    label: str
    names: tuple[str, ...]


class Published(NamedTuple):
    """The prompts of one set; `classes` is empty for a set whose data name them."""

    classes: tuple[ClassNames, ...]
    templates: tuple[str, ...] | str  # or the name of a set of templates
    source: str  # where they were published
    # Labels of the ImageNet classes that the classes stand for, if they have names of their own.
    imagenet: tuple[str, ...] = ()


def published_sets() -> tuple[str, ...]:
    """Returns the names of the sets with published prompts, sorted."""
    return tuple(sorted(_sets()))


@functools.cache
def published(name: str) -> Published | None:
    """Returns the prompts of a set, such as "food101"; None for an unknown name."""
    values = _sets().get(name)
    if values is None:
        return None
    classes = tuple(as_class(entry) for entry in values.get("classes", ()))
    if "of" in values:  # a part of another set's classes
        whole = published(values["of"])
        assert whole is not None, values["of"]
        by_label = {each.label: each for each in whole.classes}
        classes = tuple(by_label[each.label] for each in classes)
    templates = values["templates"]
    found = templates if isinstance(templates, str) else tuple(templates)
    return Published(classes, found, values["source"], tuple(values.get("imagenet", ())))


def as_class(entry: str | list[str]) -> ClassNames:
    """Returns the class of one entry of a file."""
    if isinstance(entry, str):
        return ClassNames(entry, (entry,))
    return ClassNames(entry[0], tuple(entry[1:]))


@functools.cache
def _sets() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(_FOLDER.glob("*.json")):
        file = json.loads(path.read_text("utf-8"))
        found |= {
            name: {"source": file["source"], **values} for name, values in file["sets"].items()
        }
    return found
