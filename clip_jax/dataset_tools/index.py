"""Makes the indexes of tar files, which training otherwise makes when it first opens them.

python -m clip_jax.data index --data='shards/*.tar' --workers=16

Only headers and captions are read. What is indexed already and has not changed is left as it is.
Exits 0, or 1 if an archive is damaged, has no usable sample or cannot be read.
"""

import sys

from absl import flags
from tqdm import tqdm

from clip_jax.data.options import SourceConfig
from clip_jax.data.tars.collection import IndexSummary, Shard, build_indexes
from clip_jax.data.tars.index import NO_END, read_drops
from clip_jax.dataset_tools.data_flags import define_data_flags, define_workers, parts
from clip_jax.files.patterns import expand_paths

FLAGS = flags.FlagValues()
_DATA = define_data_flags(FLAGS)
_WORKERS = define_workers(FLAGS)
_BESIDE = flags.DEFINE_boolean(
    "beside", False, "Write them beside the archives instead of into the cache.", flag_values=FLAGS
)
_REBUILD = flags.DEFINE_boolean("rebuild", False, "Make them all anew.", flag_values=FLAGS)

_SHOWN_SECONDS = 1.0  # longer work shows progress


def main() -> int:
    """Writes missing indexes and prints summaries; returns 1 if an archive is bad."""
    summaries = [_index(part) for part in parts(_DATA.read())]
    for summary in summaries:
        print(_describe(summary))
    return int(any(summary.failed or any(map(_is_bad, summary.shards)) for summary in summaries))


def _index(data: SourceConfig) -> IndexSummary:
    with tqdm(
        desc="indexing",
        unit=" archives",
        file=sys.stderr,
        delay=_SHOWN_SECONDS,
        disable=not sys.stderr.isatty(),
    ) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        return build_indexes(
            expand_paths(data.path, remote=data.remote),
            workers=_WORKERS.value,
            beside=_BESIDE.value,
            rebuild=_REBUILD.value,
            options=data.options(),
            progress=progress,
        )


def _is_bad(shard: Shard) -> bool:
    return bool(shard.header.damage) or not shard.header.count


def _describe(summary: IndexSummary) -> str:
    lines = [f"not indexed: {reason}" for reason in summary.failed.values()]
    for shard in summary.shards:
        if shard.header.damage:
            lines.append(f"damaged: {shard.path} {shard.header.damage}")
        elif not shard.header.has_end:
            lines.append(f"{shard.path} {NO_END}")
        if not shard.header.count:
            lines.append(f"{shard.path} has no usable sample{_why(shard)}")
    samples = sum(shard.header.count for shard in summary.shards)
    dropped = sum(sum(shard.header.drop_counts.values()) for shard in summary.shards)
    lines.append(
        f"{len(summary.shards):,} archives, {samples:,} samples, {dropped:,} dropped;"
        f" {summary.built:,} indexed now, {len(summary.shards) - summary.built:,} before"
        + (f"; {summary.beside:,} copied beside their archives" if summary.beside else "")
        + (f"; {len(summary.failed):,} cannot be read" if summary.failed else "")
    )
    return "\n".join(lines)


def _why(shard: Shard) -> str:
    dropped = sum(shard.header.drop_counts.values())
    if not dropped:
        return ""
    key, _, reason, _ = read_drops(shard.index, shard.header, shard.table_start)[0]
    return f" ({dropped:,} dropped; {key}: {reason})"
