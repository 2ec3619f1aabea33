"""The share of records that cannot be used, which `data.max_bad_fraction` limits.

Records are found unusable at two moments: when the source is opened (a row without caption), and
when they are read (an image that cannot be decoded). Both count. What a rule leaves out does not,
nor does what is in a shard that cannot be read.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from clip_jax.data.records import Source
from clip_jax.data.sources.refine import RefinedSource
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.errors import UserError

# Left out because a rule says so: nothing is wrong with the data.
BY_RULE = ("caption_filtered", "image_filtered", "duplicate")
_SHARDS = ("shard_unreadable", "shard_damaged")
_MIN_RECORDS_JUDGED = 100  # the bad share is one of at least so many records (or of all, if fewer)
_EXAMPLES = 3
_ROUNDING = 1e-9


@dataclass
class Opened:
    """Rows that were kept and left out when a source was opened; of a stream so far.

    Several rows may make one record: rows are compared with rows.
    """

    kept: int = 0
    left_out: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # name -> reason, of the first

    def add(self, kept: int, counts: Mapping[str, int]) -> int:
        """Adds rows, left out ones by kind; returns how many of them something is wrong with."""
        wrong = Counter({k: n for k, n in counts.items() if k not in (*BY_RULE, *_SHARDS)})
        # The cut of a damaged archive goes through a sample, which is no fault of its own.
        total = max(0, wrong.total() - counts.get("shard_damaged", 0))
        self.kept += kept
        self.left_out += total
        if total:
            self.kinds += wrong
        return total

    def show(self, name: str, reason: str) -> None:
        """Remembers an example for the message, as far as there is room."""
        if len(self.examples) < _EXAMPLES:
            self.examples.setdefault(name, reason)


def opened(source: Source) -> Opened:
    """What opening a source kept and left out; of a mixture over all its sources."""
    found = Opened()
    inner = source.source if isinstance(source, RefinedSource) else source
    parts = inner.sources if isinstance(inner, MixtureSource) else (inner,)
    for part in parts:
        found.add(part.dropped.kept_rows or len(part), part.dropped.counts)
    for name, drop in source.dropped.listed:
        if drop.kind not in (*BY_RULE, *_SHARDS):
            found.show(name, drop.reason)
    return found


@dataclass
class Tally:
    """Records that cannot be used, among those that there are and those read so far."""

    opened: Opened
    count: int  # records that the source has; of a stream an estimate
    tried: int = 0  # records read so far
    bad: Counter[str] = field(default_factory=Counter)  # kind -> how many of them are unusable
    examples: dict[str, str] = field(default_factory=dict)  # name -> reason, of those

    def exceeds(self, max_bad_fraction: float) -> bool:
        """Whether a larger share of the records than `max_bad_fraction` cannot be used."""
        left_out = self.opened.left_out
        # All records that there are, as far as is known; of a stream those of its shards so far.
        total = max(self.opened.kept + left_out, min(_MIN_RECORDS_JUDGED, self.count + left_out))
        # What opening left out uses up a part of what is tolerated: the rest is for what it kept.
        tolerated = max_bad_fraction * total - left_out
        judged = min(self.count, max(self.tried, _MIN_RECORDS_JUDGED))
        share = self.bad.total() * (total - left_out)
        return tolerated < -_ROUNDING or share > tolerated * judged + _ROUNDING

    def error(self, max_bad_fraction: float) -> UserError:
        """What is wrong with how many, such as which, in one line."""
        found, opened = [], self.opened
        if opened.left_out:
            rows = opened.kept + opened.left_out
            found.append(f"{opened.left_out:,} of {rows:,} records when the data was opened")
        if self.bad:
            tried = min(self.count, self.tried)
            found.append(f"{self.bad.total():,} of {tried:,} records tried")
        kinds = (opened.kinds + self.bad).most_common()
        shown = list((self.examples | opened.examples).items())[:_EXAMPLES]
        return UserError(
            f"{' and '.join(found)} cannot be used ({', '.join(f'{n:,} x {k}' for k, n in kinds)}),"
            f" more than max_bad_fraction={max_bad_fraction:g}; such as"
            f" {'; '.join(f'{name}: {reason}' for name, reason in shown)};"
            " repair the data, or raise config.data.max_bad_fraction"
        )


def check_opened(source: Source, max_bad_fraction: float) -> None:
    """Raises `UserError` where opening the source left out too many records."""
    tally = Tally(opened(source), len(source))
    if tally.exceeds(max_bad_fraction):
        raise tally.error(max_bad_fraction)
