"""A conversion on disk: what was asked, which shards are whole, and what was left out.

DIR/convert.json is written first, with what was asked, and once more at the end, with what came
out. A shard is made in DIR/.convert and renamed; what is known of it lies there too until the end.
So after a kill every file in DIR is whole, and the next run makes the rest.
"""

import contextlib
import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clip_jax.data.records import Source
from clip_jax.dataset_tools.output_files import names_in, write_json
from clip_jax.errors import UserError
from clip_jax.files.disk import ASIDE_PREFIX, telling

RECORD = "convert.json"
ASIDE = ".convert"  # folder in it


@dataclass(frozen=True)
class Settings:
    """What a conversion is asked to do; another answer needs another folder."""

    to: str  # "webdataset" or "array_record"
    samples_per_shard: int | None  # or
    shard_mb: float | None  # about so many million bytes
    resize: int | None
    encode: str
    quality: int


@dataclass(frozen=True)
class ShardResult:
    """What came of one shard; one without samples has no file."""

    name: str
    samples: int
    bytes: int
    left_out: dict[str, int] = field(default_factory=dict)  # kind -> how many
    bad_samples: list[dict[str, str]] = field(default_factory=list)  # the first of them


@dataclass(frozen=True)
class Conversion:
    """The folder that is written, and its plan."""

    folder: Path
    plan: dict[str, Any]  # as in convert.json
    extension: str
    records: int

    def shards(self) -> dict[str, range]:
        """File name -> the records that go there."""
        size: int = self.plan["records_per_shard"]
        starts = range(0, self.records, size)
        width = max(5, len(str(len(starts) - 1)))
        return {
            f"{number:0{width}d}.{self.extension}": range(start, min(start + size, self.records))
            for number, start in enumerate(starts)
        }

    def finished(self) -> dict[str, ShardResult]:
        """The shards that are whole."""
        found = [*self.plan.get("shards", ())]
        found += (_read(path) for path in sorted((self.folder / ASIDE).glob("*.json")))
        results = {values["name"]: ShardResult(**values) for values in found if values}
        return {name: result for name, result in results.items() if self._is_there(result)}

    def _is_there(self, result: ShardResult) -> bool:
        path = self.folder / result.name
        if result.samples == 0:
            return not path.exists()
        return path.is_file() and path.stat().st_size == result.bytes

    def finish(self, source: Source, results: dict[str, ShardResult]) -> dict[str, Any]:
        """Writes convert.json with what came out, and takes away what lay aside."""
        left_out = Counter(source.dropped.counts)
        for result in results.values():
            left_out.update(result.left_out)
        record = {
            **{name: self.plan[name] for name in ("source", "settings", "records_per_shard")},
            "complete": True,
            "samples": sum(result.samples for result in results.values()),
            "bytes": sum(result.bytes for result in results.values()),
            "left_out": dict(sorted(left_out.items())),
            "left_out_when_opened": dict(source.dropped),
            "shards": [asdict(results[name]) for name in self.shards()],
        }
        write_json(self.folder / RECORD, record)
        self.tidy()
        return record

    def tidy(self) -> None:
        """Takes away what lay aside."""
        shutil.rmtree(self.folder / ASIDE, ignore_errors=True)


def read_plan(
    folder: Path, settings: Settings, fingerprint: str, files: str | None
) -> dict[str, Any] | None:
    """What a former run with the same settings has planned; None in a new folder.

    `fingerprint`, `files`: of the source, and the state of its files.

    Raises UserError where the folder holds something else.
    """
    others = [name for name in names_in(folder) if not name.startswith((ASIDE, ASIDE_PREFIX))]
    plan = _read(folder / RECORD)
    if plan is None:
        if others:
            raise UserError(
                f"--output={folder}: is not empty ({others[0]}, …) and holds no readable"
                f" {RECORD}; give a new folder"
            )
        return None
    # The data first: how large shards are by default follows from it.
    here = {"fingerprint": fingerprint, "files": files, **asdict(settings)}
    there = {**plan["settings"], "fingerprint": plan["source"]["fingerprint"]}
    there["files"] = plan["source"].get("files", files)  # of an earlier version
    other = {
        "fingerprint": "other data (keys or captions)",
        "files": "files of other size or time of change",
    }
    for name, value in here.items():
        if there.get(name) != value:
            what = other.get(name, f"other {name}")
            raise UserError(
                f"--output={folder}: was begun with {what}: {there.get(name)!r} there, {value!r}"
                " now; give the same again, or a new folder"
            )
    return plan


def begin(folder: Path, settings: Settings, source_facts: dict[str, Any], size: int) -> Any:
    """Writes the plan of a new conversion with `size` records a shard, and returns it."""
    plan = {
        "source": source_facts,
        "settings": asdict(settings),
        "records_per_shard": size,
        "complete": False,
    }
    write_json(folder / RECORD, plan)
    return plan


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps it for this process. Raises UserError where another has it."""
    with telling(f"--output={folder}"):
        (folder / ASIDE).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Of a run that was killed.
        for left in (*(folder / ASIDE).glob("*.part-*"), *folder.glob(f"{ASIDE_PREFIX}*")):
            left.unlink(missing_ok=True)
        yield
    except BlockingIOError:
        raise UserError(f"--output={folder}: another conversion is writing there") from None
    finally:
        os.close(descriptor)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
