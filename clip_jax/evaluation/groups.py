"""Groups of a source's records, such as the regions or the people that images are of."""

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from clip_jax.data.records import Source
from clip_jax.data.task_data import TaskData
from clip_jax.errors import DecodeError, UserError
from clip_jax.evaluation.metrics.groups import group_rates, worst_group
from clip_jax.evaluation.metrics.rows import metrics_row

NO_GROUP = ""  # of a record that counts in no group
_OF_ARRAY = re.compile(r"npy\[(\d+)\]")


def group_member(key: str | None) -> str | None:
    """Returns the archive member that `TaskData.group_key` needs: "npy" for "npy[0]"."""
    return "npy" if key is not None and _OF_ARRAY.fullmatch(key) else None


def read_groups(source: Source, data: TaskData) -> np.ndarray:
    """Reads the group of each record: str (N,), `NO_GROUP` for the group that is left out.

    Raises UserError that names `group_key` if it is missing, or the record without it.
    """
    if data.group_key is None:
        raise UserError("group_key=None: give the metadata field that holds the groups")
    place = _OF_ARRAY.fullmatch(data.group_key)
    groups = []
    for index, value in record_fields(source, "npy" if place else data.group_key):
        if place:
            numbers = array_of(value, source.key(index)).ravel()
            if int(place[1]) >= len(numbers):
                raise UserError(
                    f"group_key={data.group_key!r}: record {source.key(index)} has"
                    f" {len(numbers)} numbers in its .npy"
                )
            value = numbers[int(place[1])].item()
        # A group's number may be stored as 1, 1.0, b"1" or "1".
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
        groups.append(text.strip().removesuffix(".0"))
    return np.asarray([NO_GROUP if group == data.left_out_group else group for group in groups])


def record_fields(source: Source, key: str) -> Iterator[tuple[int, Any]]:
    """Yields (record, its field `key`). Raises UserError that names one without it."""
    for index in range(len(source)):
        try:
            fields = source.metadata(index)
        except DecodeError as error:
            raise UserError(f"record {source.key(index)}: {error}") from error
        if fields.get(key) is None:
            has = ", ".join(sorted(fields)) or "none"
            raise UserError(f"record {source.key(index)}: no metadata field {key!r} (has: {has})")
        yield index, fields[key]


def array_of(value: Any, key: str) -> np.ndarray:
    """Returns the array of a record's `.npy`. Raises UserError that names the record."""
    try:
        return np.load(io.BytesIO(value), allow_pickle=False)
    except (ValueError, OSError, EOFError, TypeError) as error:
        raise UserError(f"record {key}: its .npy cannot be read: {error}") from error


def worst_group_row(shares: dict[str, np.ndarray], groups: np.ndarray) -> dict[str, float]:
    """Returns `worst_group_NAME` with its limits for each of `shares`, and `num_groups`.

    Args:
      shares: by name, contributions (N,) in [0, 1].
      groups: str (N,); those of `NO_GROUP` do not count.
    """
    counts = groups != NO_GROUP
    if not counts.any():
        raise UserError("group_key: no image is in a group")
    worst = {f"worst_group_{x}": worst_group(v[counts], groups[counts]) for x, v in shares.items()}
    return {**metrics_row(worst), "num_groups": len(np.unique(groups[counts]))}


def rows_by_group(
    fields: dict[str, Any], key: str, shares: dict[str, np.ndarray], groups: np.ndarray
) -> list[dict[str, Any]]:
    """Returns a row for each group: `fields`, with the group in "dataset" and "group", and rates.

    `shares` and `groups` are those of `worst_group_row`.
    """
    counts = groups != NO_GROUP
    rates = {name: group_rates(values[counts], groups[counts]) for name, values in shares.items()}
    rows = []
    for group in np.unique(groups[counts]).tolist():
        label = group if "=" in group else f"{key}={group}"
        size = int((groups == group).sum())
        metrics = metrics_row({name: rates[name][group] for name in shares})
        named = {"dataset": f"{fields['dataset']}/{label}", "group": label}
        rows.append({**fields, **named, **metrics, "num_images": size})
    return rows
