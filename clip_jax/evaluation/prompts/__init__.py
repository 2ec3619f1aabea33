"""Prompt templates and class names: by name, or in the user's files."""

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clip_jax.arguments import shown, text_list, with_home
from clip_jax.errors import UserError
from clip_jax.evaluation.prompts.published import ClassNames, as_class, published
from clip_jax.files.text_encoding import utf16_problem

# The name of a set of templates, the path of a file of them, or the templates themselves.
Templates = str | os.PathLike[str] | Iterable[str]

_FOLDER = Path(__file__).parent
# Name -> its templates, or the file that holds them. Both files are of OpenAI's notebook
# Prompt_Engineering_for_ImageNet.ipynb (github.com/openai/CLIP, MIT): the 80 of Radford et al.
# 2021, section 3.1.4, in its order, and the seven that forward selection picked from them.
NAMED_TEMPLATES: dict[str, Path | tuple[str, ...]] = {
    "openai": _FOLDER / "openai.txt",
    "openai_simple": _FOLDER / "openai_simple.txt",
    "photo": ("a photo of a {}.",),
    "none": ("{}",),
}

_ACCEPTED = (
    f"accepted are {', '.join(NAMED_TEMPLATES)}, a published set such as food101, the path of a"
    " text file with one template a line, or a list of templates"
)


def get_templates(templates: Templates) -> tuple[str, ...]:
    """Returns prompt templates, each with one "{}" for the class name.

    Args:
      templates: "openai" (80), "openai_simple" (7), "photo" ("a photo of a {}."), "none" ("{}");
        the path of a UTF-8 text file with one template a line; or the templates themselves, in any
        iterable that has an order. A set's name, such as "food101", means those published for it.

    Raises:
      UserError: unknown name, unreadable file, no template, or one without exactly one "{}".
    """
    if isinstance(templates, str | os.PathLike):
        named = NAMED_TEMPLATES.get(os.fspath(templates))
        if named is not None:
            return read_lines(named) if isinstance(named, Path) else named
        known = published(os.fspath(templates))
        if known is not None:
            return get_templates(known.templates)
        origin, found = _templates_of_file(templates)
    elif templates is None:
        raise UserError(f"templates=None: {_ACCEPTED}")
    else:
        origin, found = "templates", tuple(text_list(templates, "templates", "a photo of a {}."))
    if not found:
        raise UserError(f"{origin}: there is no template in it")
    for i, template in enumerate(found):
        if template.count("{}") != 1:
            raise UserError(
                f"{origin}, template {i + 1}: {template!r}; accepted has exactly one {{}}"
            )
    return found


def _templates_of_file(templates: str | os.PathLike[str]) -> tuple[str, tuple[str, ...]]:
    """Returns the path of the file, and its lines."""
    given = os.fspath(templates)
    if isinstance(given, str) and "{}" in given and not os.path.exists(given):
        raise UserError(f"templates={given!r}: is one template; give a list, such as [{given!r}]")
    path = Path(with_home(templates, "templates")) if given else None
    if path is None or not path.is_file():
        raise UserError(f"templates={shown(given)}: {_ACCEPTED}")
    return str(path), read_lines(path)


def get_classes(classnames: str | os.PathLike[str]) -> tuple[ClassNames, ...]:
    """Returns the classes of a published set, such as "food101", or of a file; class i is the i-th.

    Args:
      classnames: name of the set; the path of a text file with a name a line; or that of a `.json`,
        a list in which a class is one text, or [what the data call it, name, another name, …]. A
        list without names is a class whose records are left out.

    Raises:
      UserError: as `read_classnames`, or the `.json` is no such list.
    """
    known = published(os.fspath(classnames))
    if known is not None and known.classes:
        return known.classes
    if not os.fspath(classnames).lower().endswith(".json"):
        return tuple(ClassNames(name, (name,)) for name in read_classnames(classnames))
    entries = read_json(classnames)
    wanted = "accepted is a text, or a list of texts: the label in the data, then names for prompts"
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{classnames}: must be a list of classes; of each, {wanted}")
    for number, entry in enumerate(entries):
        texts = entry if isinstance(entry, list) else [entry]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{classnames}, class {number}: {shown(entry)}; {wanted}")
    return tuple(as_class(entry) for entry in entries)


def read_classnames(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads class names from a UTF-8 text file, one per line: line i + 1 names class i.

    Raises:
      UserError: the file cannot be read, holds no name, or has an empty line before the last name
        (it would shift the numbers of all later classes).
    """
    names = read_lines(path)
    if not names:
        raise UserError(f"{path}: there is no class name in it")
    if "" in names:
        raise UserError(
            f"{path}, line {names.index('') + 1}: empty; accepted is a class name a line"
        )
    return names


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file. Raises UserError if it cannot be read or is none."""
    try:
        return json.loads("\n".join(read_lines(path)))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}") from error


def read_lines(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Reads stripped lines of a UTF-8 text file; drops a byte order mark and empty last lines.

    A line ends with a line feed, a carriage return or both. A leading "~" in `path` is the user's
    home folder.

    Raises:
      UserError: the file cannot be read or is not UTF-8.
    """
    path = with_home(path, "file")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    problem = utf16_problem(data)
    if problem is not None:
        raise UserError(f"{path} {problem}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    # splitlines() would also split at characters that may occur in a name.
    lines = [line.strip() for line in re.split(r"\r*\n|\r", text)]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)
