"""Groups of a source's records by a metadata field: balanced sampling, weights in the loss, and
the groups that an adversary tells apart."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from clip_jax.data.records import Drops, Record, Source, fingerprint_of
from clip_jax.data.stream.order import BLOCK
from clip_jax.errors import DecodeError, UserError

INVERSE = "1/"  # before a field: the inverse of how frequent its value is


class BalancedSource:
    """The records of `source`, sorted by group; `sizes` and `weights` make the groups equally
    frequent in a stream (see `order.ShuffledOrder`), each with epochs of its own.

    Record numbers are places in the sorted order. Raises UserError for a record without the field.
    """

    def __init__(self, source: Source, field: str) -> None:
        self.source = source
        names, groups = np.unique(
            _values(source, field, "config.data.balance_by"), return_inverse=True
        )
        if len(names) > BLOCK:
            raise UserError(
                f"config.data.balance_by={field!r}: has {len(names):,} values; accepted are at"
                f" most {BLOCK:,}"
            )
        self._numbers = np.argsort(groups, kind="stable")
        self.sizes = tuple(np.bincount(groups).tolist())
        self.weights = (1.0,) * len(names)

    @property
    def dropped(self) -> Drops:
        return self.source.dropped

    @property
    def fingerprint(self) -> str:
        order = hashlib.blake2b(self._numbers.astype("<i8").tobytes(), digest_size=16).hexdigest()
        sizes = ",".join(map(str, self.sizes))
        return fingerprint_of([(self.source.fingerprint, ("balanced", sizes, order))])

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self._numbers[index])]

    def captions(self, index: int) -> tuple[str, ...]:
        return self.source.captions(int(self._numbers[index]))

    def metadata(self, index: int) -> dict[str, Any]:
        return self.source.metadata(int(self._numbers[index]))

    def key(self, index: int) -> str:
        return self.source.key(int(self._numbers[index]))


@dataclass(frozen=True)
class SampleWeight:
    """Weight of a record in the loss, from its metadata; pickled to workers.

    Attributes:
      field: of the metadata.
      of_value: weight by the field's value, as text; None: the value is the weight.
    """

    field: str
    of_value: Mapping[str, float] | None = None

    def __call__(self, source: Source, index: int) -> float:
        """Returns the weight. Raises UserError that names a record without one."""
        value = _value(source, index, self.field, "config.data.sample_weight")
        if self.of_value is not None:
            return self.of_value[str(value)]
        try:
            weight = float(value)
        except (TypeError, ValueError):
            weight = math.nan
        if not (math.isfinite(weight) and weight >= 0):
            raise UserError(
                f"config.data.sample_weight={self.field!r}: record {source.key(index)} has"
                f" {value!r}; accepted is a number of at least 0"
            )
        return weight


@dataclass(frozen=True)
class GroupNumber:
    """Number of a record's group, from its metadata; pickled to workers.

    Attributes:
      field: of the metadata.
      groups: the values of the field.
    """

    field: str
    groups: tuple[str, ...]

    def __call__(self, source: Source, index: int) -> int:
        """Returns the place of the record's value. Raises UserError if it has none, or another."""
        value = str(_value(source, index, self.field, "config.adversary.field"))
        if value not in self.groups:
            raise UserError(
                f"config.adversary.groups={self.groups}: record {source.key(index)} has"
                f" {self.field}={value!r}; give all values, or leave such records out"
            )
        return self.groups.index(value)


def sample_weight(source: Source, spec: str) -> SampleWeight:
    """Returns the weights that `config.data.sample_weight` names: of a field, or "1/FIELD".

    The latter reads the field of every record. Its weights are N / (G · count of the value), with N
    records of G values, so that all values have the same total and the mean weight is 1.
    """
    if not spec.startswith(INVERSE):
        return SampleWeight(spec)
    field = spec.removeprefix(INVERSE)
    counts = Counter(_values(source, field, "config.data.sample_weight"))
    total = len(source) / len(counts)
    return SampleWeight(field, {value: total / count for value, count in counts.items()})


def _values(source: Source, field: str, key: str) -> list[str]:
    return [str(_value(source, index, field, key)) for index in range(len(source))]


def _value(source: Source, index: int, field: str, key: str) -> Any:
    try:
        fields = source.metadata(index)
    except DecodeError as error:
        raise UserError(f"{key}: record {source.key(index)}: {error}") from error
    if fields.get(field) is None:
        has = ", ".join(sorted(fields)) or "none"
        raise UserError(
            f"{key}: record {source.key(index)} has no metadata field {field!r} (has: {has})"
        )
    return fields[field]
