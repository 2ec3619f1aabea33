"""Share of unusable records, which `data.max_bad_fraction` limits.

Records are found unusable when the source is opened (a row without caption) or when they are read
(an image that cannot be decoded). Both count. Records dropped by a rule do not count, nor do those
in an unreadable shard.
"""

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clip_jax.data.records import Source
from clip_jax.data.sources.refine import RefinedSource
from clip_jax.data.stream.groups import BalancedSource
from clip_jax.data.stream.make_batch import Bad
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.errors import UserError

logger = logging.getLogger(__name__)

# These drops follow a rule of the user; nothing is wrong with the data.
BY_RULE = ("caption_filtered", "image_filtered", "duplicate")
_SHARDS = ("shard_unreadable", "shard_damaged")
_MIN_RECORDS_JUDGED = 100  # minimum denominator of the bad share (or all records, if fewer)
_EXAMPLES = 3
_LISTED = 1000  # bad records listed by name; all are counted
_ROUNDING = 1e-9


@dataclass
class Tally:
    """Counts of what a run leaves out, which a checkpoint keeps.

    Rows are counted when a source is opened or a shard of a stream begins, and records when they
    are read, because several rows may make one record.
    """

    count: int  # records that the source has; an estimate for a stream
    kept: int = 0  # rows
    left_out: int = 0  # unusable rows
    tried: int = 0  # records read so far
    bad: set[int] = field(default_factory=set)  # numbers of unusable records; keys may repeat
    kinds: Counter[str] = field(default_factory=Counter)  # kind -> unusable rows and records
    examples: dict[str, str] = field(default_factory=dict)  # name -> reason, of a few bad rows
    bad_records: dict[str, str] = field(default_factory=dict)  # key -> reason, of the first ones
    lost_shards: dict[str, str] = field(default_factory=dict)  # file -> why it cannot be read
    dropped: Counter[str] = field(default_factory=Counter)  # kind -> drops while reading

    def state(self) -> dict[str, Any]:
        """Returns a JSON-serializable copy; `restored` is the inverse."""
        return {**copy.deepcopy(vars(self)), "bad": sorted(self.bad)}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> "Tally":
        """Makes one from what a checkpoint holds."""
        counters = {name: Counter(state[name]) for name in ("kinds", "dropped")}
        return cls(**{**copy.deepcopy(dict(state)), **counters, "bad": set(state["bad"])})

    def add_rows(self, kept: int, counts: Mapping[str, int]) -> int:
        """Adds kept rows and dropped ones by kind; returns how many of these are bad."""
        wrong = Counter({k: n for k, n in counts.items() if k not in (*BY_RULE, *_SHARDS)})
        # A truncated archive cuts through one sample, which is not counted as bad.
        total = max(0, wrong.total() - counts.get("shard_damaged", 0))
        self.kept += kept
        self.left_out += total
        if total:
            self.kinds += wrong
        return total

    def show(self, name: str, reason: str) -> None:
        """Remembers an example for the message, while there is room."""
        if len(self.examples) < _EXAMPLES:
            self.examples.setdefault(name, reason)

    def lose(self, shard: str, reason: str) -> None:
        """Counts a shard that cannot be read, once."""
        if shard not in self.lost_shards:
            self.lost_shards[shard] = reason
            self.dropped["shard_unreadable"] += 1
            logger.warning("shard %s left out: %s", shard, reason)

    def judge(
        self, rows: int, unused: Sequence[Bad], is_complete: bool, max_bad_fraction: float
    ) -> None:
        """Counts the records of a batch. Raises UserError if it is incomplete or too many of all
        are unusable."""
        self.tried += rows + sum(self._is_bad(entry) for entry in unused)
        if not is_complete and unused[-1].shard is not None:
            raise UserError(
                f"{len(self.lost_shards)} shards cannot be read, and too many of them one after"
                f" another, such as {unused[-1].shard}: {unused[-1].reason}; the same command goes"
                " on when they are back"
            )
        if not is_complete and not self.bad:
            counts = ", ".join(f"{n} x {kind}" for kind, n in self.dropped.items())
            raise UserError(
                f"the filters leave nothing of {len(unused)} records in a row ({counts}; such as"
                f" {unused[0].key}: {unused[0].reason}); loosen config.data.filters"
            )
        if not is_complete or self.exceeds(max_bad_fraction):
            raise self.error(max_bad_fraction)

    def _is_bad(self, entry: Bad) -> bool:
        """Counts a drop; returns whether something is wrong with the record itself."""
        if entry.shard is not None:
            self.lose(entry.shard, entry.reason)
            return False
        if entry.kind in BY_RULE:
            self.dropped[entry.kind] += 1
            return False
        if entry.number not in self.bad:
            self.bad.add(entry.number)
            self.dropped[entry.kind] += 1
            self.kinds[entry.kind] += 1
            if len(self.bad_records) < _LISTED:
                self.bad_records[entry.key] = entry.reason
                logger.warning("record %s left out: %s", entry.key, entry.reason)
        return True

    def exceeds(self, max_bad_fraction: float) -> bool:
        """Returns whether the share of unusable records is above `max_bad_fraction`."""
        # The total has all rows known; for a stream, those of its shards so far.
        least = min(_MIN_RECORDS_JUDGED, self.count + self.left_out)
        total = max(self.kept + self.left_out, least)
        # Rows dropped at opening use up a part of the tolerance; the rest is for the kept ones.
        tolerated = max_bad_fraction * total - self.left_out
        judged = min(self.count, max(self.tried, _MIN_RECORDS_JUDGED))
        share = len(self.bad) * (total - self.left_out)
        return tolerated < -_ROUNDING or share > tolerated * judged + _ROUNDING

    def error(self, max_bad_fraction: float) -> UserError:
        """Returns a one-line error with counts by kind and a few examples."""
        found = []
        if self.left_out:
            rows = self.kept + self.left_out
            found.append(f"{self.left_out:,} of {rows:,} records when the data was opened")
        if self.bad:
            found.append(f"{len(self.bad):,} of {min(self.count, self.tried):,} records tried")
        kinds = ", ".join(f"{n:,} x {kind}" for kind, n in self.kinds.most_common())
        examples = [f"{name}: {why}" for name, why in (self.bad_records | self.examples).items()]
        return UserError(
            f"{' and '.join(found)} cannot be used ({kinds}), more than max_bad_fraction="
            f"{max_bad_fraction:g}; such as {'; '.join(examples[:_EXAMPLES])}; repair the data, or"
            " raise config.data.max_bad_fraction"
        )


def opened(source: Source) -> Tally:
    """Returns the rows kept and dropped by opening a source, or all sources of a mixture."""
    tally = Tally(len(source))
    inner = source.source if isinstance(source, RefinedSource | BalancedSource) else source
    parts = inner.sources if isinstance(inner, MixtureSource) else (inner,)
    for part in parts:
        tally.add_rows(part.dropped.kept_rows or len(part), part.dropped.counts)
    for name, drop in source.dropped.listed:
        if drop.kind not in (*BY_RULE, *_SHARDS):
            tally.show(name, drop.reason)
    return tally


def check_opened(source: Source, max_bad_fraction: float) -> None:
    """Raises `UserError` if opening the source dropped too many records."""
    tally = opened(source)
    if tally.exceeds(max_bad_fraction):
        raise tally.error(max_bad_fraction)
