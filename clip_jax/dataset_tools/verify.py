"""Reads and fully decodes every sample: how many are good, and where the bad ones are.

python -m clip_jax.data verify --data='shards/*.tar' --output=verify.json

Exits 0 if all are good, 1 if some are not or a file is damaged, 2 after a mistake in the flags.
A tar without an end mark is named, as it may be cut off, but not counted. The checksum of the
samples is that of keys, images and captions in order, whatever the format; those of files are
what sha256sum prints.
"""

import hashlib
import os
import sys
from collections import Counter
from typing import Any, NamedTuple

from absl import flags

from clip_jax.data.records import Source
from clip_jax.dataset_tools.bad_samples import BadSample, damaged_files, describe_kinds
from clip_jax.dataset_tools.data_files import local_files
from clip_jax.dataset_tools.data_flags import define_data_flags, define_workers, open_data, parts
from clip_jax.dataset_tools.output_files import output_file, write_json
from clip_jax.dataset_tools.recode import image_bytes
from clip_jax.dataset_tools.workers import Count, outcomes, work_on
from clip_jax.images.decoding import decode

FLAGS = flags.FlagValues()
_DATA = define_data_flags(FLAGS)
_WORKERS = define_workers(FLAGS)
_OUTPUT = flags.DEFINE_string(
    "output", None, "JSON file for the report, with every bad sample.", flag_values=FLAGS
)
_CHECKSUMS = flags.DEFINE_boolean(
    "checksums",
    True,
    "Also checksums of the files, which are read once more for them.",
    flag_values=FLAGS,
)

_SHOWN = 20  # bad samples, and damaged files, in the terminal


class Verified(NamedTuple):
    """A good sample."""

    captions: int
    image_bytes: int
    digest: bytes  # sha256 of key, image and captions


def main() -> int:
    """Verifies, prints a summary, writes the report; returns 1 if a sample or file is bad."""
    output = output_file(_OUTPUT.value)
    config = _DATA.read()
    source = open_data(config, listed_drops=sys.maxsize, skip_unreadable=True)
    report = verify(source, workers=_WORKERS.value)
    if _CHECKSUMS.value:
        files = [file for part in parts(config) for file in local_files(part.path, part.format)]
        report["files"] = file_checksums(source, files, workers=_WORKERS.value)
    print(_summary(report))
    if output is not None:
        write_json(output, {**_DATA.about(config), **report})
        print(f"written: {output}")
    return 1 if report["bad"] else 0


def verify(source: Source, *, workers: int) -> dict[str, Any]:
    """Reads and decodes every record.

    Returns JSON-serialisable counts, the checksum of all good samples, the damaged files, and the
    bad samples: those dropped at opening (at most `SourceOptions.listed_drops`), then those that
    cannot be read or decoded, in order. A damaged file counts as one, of kind "shard_damaged".
    """
    good, bad = Counter[str](), list[BadSample]()
    digest = hashlib.sha256()
    indices = range(len(source))
    for found in outcomes(source, indices, verified, workers=workers, title="verifying"):
        if isinstance(found, BadSample):
            bad.append(found)
        else:
            good.update(samples=1, captions=found.captions, image_bytes=found.image_bytes)
            digest.update(found.digest)
    dropped = source.dropped
    counts = Counter(dropped.counts)
    counts.update(sample.kind for sample in bad)
    return {
        "fingerprint": source.fingerprint,
        "samples": len(source) + dropped.total,
        "good": good["samples"],
        "captions": good["captions"],
        "image_bytes": good["image_bytes"],
        "sha256": digest.hexdigest(),
        "bad": counts.total(),
        "bad_by_kind": dict(counts.most_common()),
        "left_out_when_opened": dropped.total,
        "damaged": damaged_files(source),
        "bad_samples": [
            *({"key": key, **drop._asdict()} for key, drop in dropped.listed),
            *(sample._asdict() for sample in bad),
        ],
    }


def verified(source: Source, index: int) -> Verified:
    """Reads and decodes one sample. Raises DecodeError."""
    record = source[index]
    decode(record.image)
    digest, image = hashlib.sha256(), image_bytes(record)
    texts = (text.encode("utf-8", "surrogatepass") for text in (record.key, *record.captions))
    for part in (image, *texts):
        # Lengths distinguish ("ab", "c") from ("a", "bc").
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return Verified(len(record.captions), len(image), digest.digest())


def file_checksums(source: Source, paths: list[str], *, workers: int) -> list[dict[str, Any]]:
    """[{path, bytes, sha256}], or {path, error} for an unreadable file."""
    parts = work_on(source, paths, _checksum, workers=workers, total=0, title="checksums")
    return list(parts)


def _checksum(source: Source, path: str, count: Count) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return {"path": path, "error": error.strerror or str(error)}
    return {"path": path, "bytes": size, "sha256": digest.hexdigest()}


def _summary(report: dict[str, Any]) -> str:
    damaged = report["damaged"]
    # Some reasons already begin with the path.
    lines = _shown("damaged", [f"{x}: {damaged[x].removeprefix(x).lstrip(' :')}" for x in damaged])
    bad = []
    for sample in report["bad_samples"]:
        where = " ".join(sample[name] for name in ("kind", "position") if sample[name])
        if sample["key"] not in damaged:
            bad.append(f"{sample['key']}: {sample['reason']} ({where})")
    lines += _shown("bad", bad)
    lines.append(f"sha256 of the samples: {report['sha256']}")
    for file in report.get("files", ()):
        lines.append(f"{file.get('sha256', file.get('error'))}  {file['path']}")
    by_kind = describe_kinds(report["bad_by_kind"])
    lines.append(
        f"{report['samples']:,} samples: {report['good']:,} good,"
        f" {report['bad']:,} bad{f' ({by_kind})' if by_kind else ''};"
        f" {report['captions']:,} captions, {report['image_bytes']:,} bytes of images"
    )
    return "\n".join(lines)


def _shown(title: str, entries: list[str]) -> list[str]:
    lines = [f"{title}: {entry}" for entry in entries[:_SHOWN]]
    if len(entries) > _SHOWN:
        lines.append(f"{title}: … and {len(entries) - _SHOWN:,} more; all are listed with --output")
    return lines
