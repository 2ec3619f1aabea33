"""Share of unusable records, which `data.max_bad_fraction` limits.

Records are found unusable when the source is opened (a row without caption) or when they are read
(an image that cannot be decoded). Both count. Records dropped by a rule do not count, nor do those
in an unreadable shard.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from clip_jax.data.records import Source
from clip_jax.data.sources.refine import RefinedSource
from clip_jax.data.stream.mixture import MixtureSource
from clip_jax.errors import UserError

# These drops follow a rule of the user; nothing is wrong with the data.
BY_RULE = ("caption_filtered", "image_filtered", "duplicate")
_SHARDS = ("shard_unreadable", "shard_damaged")
_MIN_RECORDS_JUDGED = 100  # minimum denominator of the bad share (or all records, if fewer)
_EXAMPLES = 3
_ROUNDING = 1e-9


@dataclass
class Opened:
    """Counts of rows kept and dropped when a source was opened; for a stream, so far.

    Both are counts of rows, because several rows may make one record.
    """

    kept: int = 0
    left_out: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # name -> reason, the first few

    def add(self, kept: int, counts: Mapping[str, int]) -> int:
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


def opened(source: Source) -> Opened:
    """Returns counts of rows kept and dropped by opening a source, or all sources of a mixture."""
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
    """Counts of unusable records, among all and among those read so far."""

    opened: Opened
    count: int  # records that the source has; an estimate for a stream
    tried: int = 0  # records read so far
    bad: Counter[str] = field(default_factory=Counter)  # kind -> unusable ones among `tried`
    examples: dict[str, str] = field(default_factory=dict)  # name -> reason, of unusable ones

    def exceeds(self, max_bad_fraction: float) -> bool:
        """Returns whether the share of unusable records is above `max_bad_fraction`."""
        left_out = self.opened.left_out
        # The total has all records known; for a stream, those of its shards so far.
        total = max(self.opened.kept + left_out, min(_MIN_RECORDS_JUDGED, self.count + left_out))
        # Rows dropped at opening use up a part of the tolerance; the rest is for the kept ones.
        tolerated = max_bad_fraction * total - left_out
        judged = min(self.count, max(self.tried, _MIN_RECORDS_JUDGED))
        share = self.bad.total() * (total - left_out)
        return tolerated < -_ROUNDING or share > tolerated * judged + _ROUNDING

    def error(self, max_bad_fraction: float) -> UserError:
        """Returns a one-line error with counts by kind and a few examples."""
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
    """Raises `UserError` if opening the source dropped too many records."""
    tally = Tally(opened(source), len(source))
    if tally.exceeds(max_bad_fraction):
        raise tally.error(max_bad_fraction)
