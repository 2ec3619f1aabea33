"""Writes any image-text data as tar files or ArrayRecord, resized and re-encoded on request.

python -m clip_jax.data convert --data=photos --output=shards --to=webdataset --resize=256

Only samples that decode completely are written; the others are counted by reason and listed in
DIR/convert.json. The same command goes on after a kill, unless a file of the data has changed
since; its files are the same bytes whenever and by however many workers they are written. Images
that are neither resized nor re-encoded keep their bytes.
Several captions of a sample: KEY.txt has the first, KEY.json all of them as the list "captions".
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from absl import flags

from clip_jax.data.records import Source
from clip_jax.dataset_tools.bad_samples import bad_sample, describe_kinds
from clip_jax.dataset_tools.convert.plan import (
    ASIDE,
    Conversion,
    Settings,
    ShardResult,
    begin,
    locked,
    read_plan,
)
from clip_jax.dataset_tools.convert.tar_writer import Sample, plain, write_tar
from clip_jax.dataset_tools.data_files import state_of_files
from clip_jax.dataset_tools.data_flags import define_data_flags, define_workers, open_data, parts
from clip_jax.dataset_tools.output_files import output_folder, write_json
from clip_jax.dataset_tools.recode import ENCODINGS, Recoding
from clip_jax.dataset_tools.workers import Count, each, work_on
from clip_jax.errors import DecodeError, UserError
from clip_jax.files.disk import replacing, telling

FLAGS = flags.FlagValues()
_DATA = define_data_flags(FLAGS)
_WORKERS = define_workers(FLAGS)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", flag_values=FLAGS)
_TO = flags.DEFINE_enum(
    "to", "webdataset", ["webdataset", "array_record"], "Format to write.", flag_values=FLAGS
)
_PER_SHARD = flags.DEFINE_integer(
    "samples_per_shard",
    None,
    "Records of the source in a shard; by default a 32nd of them, at least 256, at most 10000.",
    lower_bound=1,
    flag_values=FLAGS,
)
_RESIZE = flags.DEFINE_integer(
    "resize",
    None,
    "Pixels that the shorter side has at most; smaller images keep their bytes.",
    lower_bound=1,
    flag_values=FLAGS,
)
_QUALITY = flags.DEFINE_integer(
    "quality", 95, "Quality of JPEG and WebP.", lower_bound=1, upper_bound=100, flag_values=FLAGS
)
_ENCODE = flags.DEFINE_enum(
    "encode",
    "keep",
    list(ENCODINGS),
    "Format of the images; keep: resized ones stay in theirs, the others keep their bytes.",
    flag_values=FLAGS,
)

_MOST_PER_SHARD, _LEAST_PER_SHARD = 10_000, 256
_SHARDS = 32  # for small data: enough for several cores, and a kill loses little
_LISTED = 1000  # bad samples per shard, by name


@dataclass(frozen=True)
class ShardJob:
    """One shard for a worker."""

    folder: Path
    name: str
    indices: range
    to: str
    recoding: Recoding


def main() -> int:
    """Writes the missing shards and prints a summary."""
    folder = output_folder(_OUTPUT.value)
    _writer(_TO.value)  # fails early if a package is missing
    config = _DATA.read()
    source = open_data(config)
    settings = Settings(
        to=_TO.value,
        samples_per_shard=_PER_SHARD.value or default_per_shard(len(source)),
        resize=_RESIZE.value,
        encode=_ENCODE.value,
        quality=_QUALITY.value,
    )
    facts = {**_DATA.about(config), "files": state_of_files(source, parts(config))}
    record, is_new = convert(source, folder, settings, facts, workers=_WORKERS.value)
    left_out = sum(record["left_out"].values())
    kinds = f": {describe_kinds(record['left_out'])}; see {folder / 'convert.json'}"
    print(
        f"{'written' if is_new else 'was complete already'}: {folder}"
        f" ({sum(shard['samples'] > 0 for shard in record['shards']):,} shards,"
        f" {record['samples']:,} samples, {record['bytes'] / 1e6:,.1f} MB;"
        f" {left_out:,} left out{kinds if left_out else ''})"
    )
    return 0


def default_per_shard(records: int) -> int:
    """Records per shard, from the data alone, so that the files do not depend on workers."""
    return min(_MOST_PER_SHARD, max(_LEAST_PER_SHARD, -(-records // _SHARDS)))


def convert(
    source: Source, folder: Path, settings: Settings, facts: dict[str, Any], *, workers: int
) -> tuple[dict[str, Any], bool]:
    """Writes the parts of `source` that `folder` lacks.

    `facts`: recorded about the source in addition to its fingerprint; "files" is the state of its
    files. Returns (content of convert.json, whether anything was written).

    Raises UserError: the folder has other content or cannot be written; no sample is usable.
    """
    facts = {**facts, "fingerprint": source.fingerprint, "records": len(source)}
    plan = read_plan(folder, settings, facts)
    recoding = Recoding(settings.resize, settings.encode, settings.quality)
    with locked(folder):
        if plan is None:
            plan = begin(folder, settings, facts)
        conversion = Conversion(folder, plan)
        results = conversion.finished()
        jobs = [
            ShardJob(folder, name, indices, settings.to, recoding)
            for name, indices in conversion.shards().items()
            if name not in results
        ]
        if plan["complete"] and not jobs:
            conversion.tidy()
            return plan, False
        total = sum(len(job.indices) for job in jobs)
        for result in work_on(
            source, jobs, convert_shard, workers=workers, total=total, title="converting"
        ):
            results[result.name] = result
        record = conversion.finish(source, results)
    if not record["samples"]:
        raise UserError(
            f"--output={folder}: no sample is usable; left out are"
            f" {describe_kinds(record['left_out'])}"
        )
    return record, True


def convert_shard(source: Source, job: ShardJob, count: Count) -> ShardResult:
    """A worker's job: writes one shard atomically. Raises UserError if it cannot write."""
    target = job.folder / job.name
    left_out: Counter[str] = Counter()
    bad: list[dict[str, str]] = []

    def samples() -> Iterator[Sample]:
        for index in each(job.indices, count):
            try:
                yield _sample(source, index, job.recoding)
            except DecodeError as error:
                left_out[error.kind] += 1
                if len(bad) < _LISTED:
                    bad.append(bad_sample(source, index, error)._asdict())

    with telling(str(target)):
        with replacing(target) as aside:
            _writer(job.to)(aside, samples())
            with open(aside, "rb") as file:
                os.fsync(file.fileno())
            written = len(job.indices) - left_out.total()
            size = aside.stat().st_size if written else 0
            result = ShardResult(job.name, written, size, dict(sorted(left_out.items())), bad)
            write_json(job.folder / ASIDE / f"{job.name}.json", asdict(result))
        if not written:
            target.unlink()
    return result


def _sample(source: Source, index: int, recoding: Recoding) -> Sample:
    record = source[index]
    image = recoding(record.image)
    # A source may yield text that UTF-8 or JSON cannot hold.
    captions = tuple(text.encode("utf-8", "replace").decode() for text in record.captions)
    return record.key, image, captions, plain(source.metadata(index))


def _writer(to: str) -> Callable[[Path, Iterable[Sample]], object]:
    if to == "webdataset":
        return write_tar
    try:
        import array_record.python.array_record_module  # noqa: F401
    except ImportError as error:
        raise UserError(f"--to={to}: needs another package; pip install array_record") from error
    from clip_jax.data.sources.array_record import write_array_records

    return write_array_records
