"""Class labels of records, read the same way from every format.

A label becomes one of three things (table in docs/data.md): a number (42, 42.0, "042", True), a
name ("tabby cat"), or nothing (None, NaN, -1, blank). Records without a label are skipped and
counted.
"""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from clip_jax.data.task_data import TaskData
from clip_jax.errors import DecodeError, UserError
from clip_jax.evaluation.prompts import get_classes
from clip_jax.evaluation.prompts.published import ClassNames

UNLABELLED = -1
_NUMBER = re.compile(r"([+-]?\d{1,18})(\.0*)?", re.ASCII)
_BOOLEANS = {"true": 1, "false": 0}
# Tables that were written as text hold these for a missing value.
_WORDS_FOR_NOTHING = {"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT"}
_SHOWN = 5  # labels or keys in a message


@dataclass(frozen=True)
class Labels:
    """The classes of a source's records.

    Attributes:
      numbers: int64 (N,), the class of each record, or `UNLABELLED`; also for a label whose class
        is not evaluated.
      classes: the classes that are evaluated, each label once if labels are names.
      read_as: "names" or "numbers".
      num_unlabelled: number of records without a label.
      notes: warnings for the user about how labels were read, one line each.
    """

    numbers: np.ndarray
    classes: tuple[ClassNames, ...]
    read_as: str
    num_unlabelled: int
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """One name of each class, to be shown."""
        return tuple(each.names[0] or each.label for each in self.classes)

    @property
    def prompt_names(self) -> tuple[tuple[str, ...], ...]:
        """All names of each class, as prompts say them."""
        return tuple(each.names for each in self.classes)


@dataclass(frozen=True)
class _Label:
    """One parsed label; `number` is None if it can only be a name."""

    text: str
    number: int | None
    is_text: bool  # written as text and not as a number

    @property
    def plain(self) -> str:
        """The form in which labels and names are compared by value."""
        return _plain(self.text)


class LabelledRecords(Protocol):
    """The part of the `Source` interface that reading labels needs."""

    def __len__(self) -> int: ...

    def metadata(self, index: int) -> dict[str, Any]: ...

    def key(self, index: int) -> str: ...


class _NoLabel(ValueError):
    """A record without a label; the message says why in a few words."""


def read_labels(source: LabelledRecords, data: TaskData) -> Labels:
    """Reads the label of each record, and decides whether labels are names or numbers.

    If every label is a class name, labels are names; otherwise, if all are line numbers, they are
    numbers. `data.labels` decides instead unless it is "auto". If both are possible and differ, a
    note says which was taken. Names match regardless of Unicode composition, surrounding blanks,
    and `_` or `-` in place of a blank. A label may also be a class's name in prompts, if no other
    class has that name.

    Raises UserError: no record has a label, a label is invalid (a list, 0.5) or not among the
    names, or labels are numbers and there is no file of names.
    """
    notes: list[str] = []
    classes = () if data.classnames is None else get_classes(data.classnames)
    names = tuple(each.label for each in classes)
    found, missing = _all_labels(source, data, names)
    labels = [label for label in found if label is not None]
    if missing:
        key, why = missing[0]
        message = (
            f"{data.path}: {len(missing):,} of {len(found):,} records have no label"
            f" ({data.label_key}); the first is {key}: {why}"
        )
        if not labels:
            raise UserError(f"{message}; give --label_key (config: label_key)")
        notes.append(f"{message}; they are left out")
    if data.classnames is None:
        names = _unnamed(labels, data, notes)
        classes = tuple(ClassNames(name, (name,)) for name in names)
    else:
        notes += _about_repeated(names, data)
    by_name = _by_name(labels, classes)
    numbers_fit = all(x.number is not None and 0 <= x.number < len(names) for x in labels)
    read_as = data.labels
    if read_as == "auto":
        read_as = "names" if all(label.text in by_name for label in labels) else "numbers"
        if read_as == "names" and numbers_fit:
            notes += _about_ambiguous(labels, by_name, data)
        if read_as == "numbers" and any(label.number is None for label in labels):
            read_as = "names"  # for the message about the one that does not occur
    if read_as == "names":
        _check_names(labels, by_name, names, data)
        numbers_of = by_name
    else:
        _check_numbers(labels, names, data)
        numbers_of = {x.text: x.number for x in labels if x.number is not None}
    lines = [UNLABELLED if label is None else numbers_of[label.text] for label in found]
    if read_as == "names":  # equal labels are one class, whose records have its first line
        first: dict[str, int] = {}
        for line, name in enumerate(names):
            first.setdefault(unicodedata.normalize("NFC", name), line)
        kept = list(first.values())
    else:
        kept = list(range(len(classes)))
    kept = [line for line in kept if classes[line].names]
    number_of = {line: number for number, line in enumerate(kept)}
    numbers = np.asarray([number_of.get(line, UNLABELLED) for line in lines], np.int64)
    evaluated = tuple(classes[line] for line in kept)
    return Labels(numbers, evaluated, read_as, len(missing), tuple(notes))


def _all_labels(
    source: LabelledRecords, data: TaskData, names: Sequence[str]
) -> tuple[list[_Label | None], list[tuple[str, str]]]:
    """Returns (label or None for each record, (key, reason) for each record without one).

    `names` are the file's class names; they may include words that otherwise mean no label.
    """
    found: list[_Label | None] = []
    missing: list[tuple[str, str]] = []
    fields: Counter[str] = Counter()
    column, is_unreadable = "", len(source) > 0
    for index in range(len(source)):
        try:
            metadata = source.metadata(index)
            if column not in metadata:
                column = _column(metadata, data.label_key) or column
            if column not in metadata:
                fields.update(metadata)
                raise _NoLabel(f"no field {data.label_key!r}")
            label = _parse(metadata[column])
            if label.text in _WORDS_FOR_NOTHING and label.text not in names:
                raise _NoLabel(f"label is {label.text}, which stands for none")
            found.append(label)
        except (_NoLabel, DecodeError) as error:
            is_unreadable &= isinstance(error, DecodeError)
            found.append(None)
            missing.append((source.key(index), str(error)))
        except UserError as error:
            raise UserError(f"record {source.key(index)}: {error}") from None
    if not column:
        if is_unreadable:
            raise UserError(f"record {missing[0][0]}: {missing[0][1]}")
        raise UserError(
            f"record {source.key(0)}: no metadata field {data.label_key!r} for the label "
            f"(has: {', '.join(sorted(fields)) or 'none'}); give --label_key (config: label_key)"
        )
    return found, missing


def _column(metadata: dict[str, Any], key: str) -> str | None:
    """Returns the field named `key`, ignoring case."""
    if key in metadata:
        return key
    return next((name for name in metadata if name.lower() == key.lower()), None)


def _parse(value: Any) -> _Label:
    """Parses one label. Raises _NoLabel if there is none, UserError if it is invalid."""
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise _NoLabel("label is not UTF-8") from None
    if isinstance(value, np.ndarray | np.generic) and np.ndim(value) == 0:
        value = value.item()
    if value is None:
        raise _NoLabel("label is missing")
    if isinstance(value, str):
        text = unicodedata.normalize("NFC", value).strip()
        if not text:
            raise _NoLabel("label is blank")
        whole = _NUMBER.fullmatch(text)
        number = int(whole[1]) if whole else _BOOLEANS.get(text.lower())
        if number == UNLABELLED:
            raise _NoLabel(f"label is {text}")
        return _Label(text, number, is_text=True)
    if isinstance(value, bool):
        return _Label(str(value), int(value), is_text=False)
    if isinstance(value, int | float):
        if isinstance(value, float) and math.isnan(value):
            raise _NoLabel("label is NaN")
        if value == UNLABELLED:
            raise _NoLabel(f"label is {value}")
        if math.isfinite(value) and value == int(value):
            return _Label(str(int(value)), int(value), is_text=False)
    raise UserError(
        f"label {str(value)[:60]!r} ({type(value).__name__}) is no class; accepted are a name, or a"
        " whole number of at least 0"
    )


def _unnamed(labels: Sequence[_Label], data: TaskData, notes: list[str]) -> tuple[str, ...]:
    """Class names for data without a file of names: the labels themselves.

    Raises UserError if they are class numbers, which mean nothing to a text tower.
    """
    are_numbers = all(label.number is not None for label in labels)
    texts = sorted({label.plain if are_numbers else label.text for label in labels})
    look_counted = any(label.plain == "0" or not label.is_text for label in labels)
    if data.labels == "numbers" or (data.labels == "auto" and are_numbers and look_counted):
        raise UserError(
            f"label_key={data.label_key!r}: holds class numbers ({_list(texts)}); give their names,"
            " one a line, by --classnames (config: classnames), or --labels=names if they are the"
            " names"
        )
    if are_numbers and data.labels == "auto":
        notes.append(
            f"{data.path}: labels ({_list(texts)}) are read as class names, as there is no file of"
            " names; if they are numbers of classes give one by --classnames (config: classnames)"
        )
    return tuple(texts)


def _canonical(name: str) -> str:
    """Returns the form in which names are compared: composed, with blanks for `_` and `-`."""
    return " ".join(re.sub(r"[_\-\s]+", " ", unicodedata.normalize("NFC", name)).split())


def _by_name(labels: Sequence[_Label], classes: Sequence[ClassNames]) -> dict[str, int]:
    """Maps a label's text to the number of the first class of that name, for labels that are names.

    An exact match wins over the canonical form, which wins over the value of a number or boolean.
    The latter two must each match exactly one class.
    """
    exact: dict[str, int] = {}
    for number, each in enumerate(classes):
        exact.setdefault(unicodedata.normalize("NFC", each.label), number)
    in_prompts = Counter(name for each in classes for name in each.names)
    for number, each in enumerate(classes):
        for name in each.names:
            if in_prompts[name] == 1:
                exact.setdefault(unicodedata.normalize("NFC", name), number)
    canonical = _unique(exact, _canonical)
    by_value = _unique(exact, _plain)
    found = {}
    for label in labels:
        class_number = exact.get(label.text, canonical.get(_canonical(label.text)))
        if class_number is None:
            class_number = by_value.get(label.plain)
        if class_number is not None:
            found[label.text] = class_number
    return found


def _unique(names: Mapping[str, int], form_of: Callable[[str], str]) -> dict[str, int]:
    """Maps each form that only one class has to the number of that class."""
    forms: dict[str, set[int]] = {}
    for name, number in names.items():
        forms.setdefault(form_of(name), set()).add(number)
    return {form: min(numbers) for form, numbers in forms.items() if len(numbers) == 1}


def _plain(text: str) -> str:
    """Returns a number without redundant zeros, a boolean in lower case, other text unchanged."""
    whole = _NUMBER.fullmatch(text)
    if whole:
        return str(int(whole[1]))
    return text.lower() if text.lower() in _BOOLEANS else text


def _about_repeated(names: Sequence[str], data: TaskData) -> list[str]:
    """Returns a note about repeated names, because no prompt tells their classes apart."""
    lines: dict[str, list[int]] = {}
    for line, name in enumerate(names, start=1):
        lines.setdefault(unicodedata.normalize("NFC", name), []).append(line)
    repeated = {name: found for name, found in lines.items() if len(found) > 1}
    if not repeated:
        return []
    name, found = next(iter(repeated.items()))
    return [
        f"{data.classnames}: {len(repeated)} names occur several times, such as {name!r} in lines"
        f" {', '.join(map(str, found))}; with labels that are names they are one class, with"
        " numbers they share their hits"
    ]


def _about_ambiguous(
    labels: Sequence[_Label], by_name: dict[str, int], data: TaskData
) -> list[str]:
    texts = sorted({x.text for x in labels if by_name[x.text] != x.number})
    if not texts:
        return []
    return [
        f"{data.path}: labels ({_list(texts)}) are read as names, since each is a line of"
        f" {data.classnames}; --labels=numbers (config: labels) reads them as numbers of"
        " its lines, from 0"
    ]


def _check_names(
    labels: Sequence[_Label], by_name: dict[str, int], names: Sequence[str], data: TaskData
) -> None:
    # The error names a non-numeric label first, since that one ruled out reading them as numbers.
    number_of = {label.text: label.number for label in labels if label.text not in by_name}
    unknown = sorted(number_of, key=lambda text: (number_of[text] is not None, text))
    if unknown:
        import difflib

        near = difflib.get_close_matches(unknown[0], names, n=1)
        raise UserError(
            f"{data.classnames}: does not have the class {unknown[0]!r} of the data"
            + (f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else "")
            + (f"; the nearest is {near[0]!r}" if near else "")
        )


def _check_numbers(labels: Sequence[_Label], names: Sequence[str], data: TaskData) -> None:
    for label in labels:
        if label.number is None:
            raise UserError(
                f"labels='numbers': label {label.text!r} of {data.path} is no number; leave it out,"
                " or give 'names'"
            )
        if label.number < 0:
            raise UserError(f"{data.path}: label {label.number}; accepted are 0 and more")
    largest = max(label.number or 0 for label in labels)
    if largest >= len(names):
        raise UserError(f"{data.classnames}: has {len(names)} names, but a label is {largest}")


def _list(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_SHOWN]) + (", …" if len(texts) > _SHOWN else "")
