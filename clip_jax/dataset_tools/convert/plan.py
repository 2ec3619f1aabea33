"""State of a conversion on disk: its settings, complete shards, and omitted samples.

DIR/convert.json is written first with the settings, and again at the end with the results. A shard
is written in DIR/.convert and renamed; its result stays there until the end. After a kill, every
file in DIR is therefore complete, and the next run writes the rest.
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
    """Settings of a conversion; each folder has one."""

    to: str  # "webdataset" or "array_record"
    samples_per_shard: int
    resize: int | None
    encode: str
    quality: int


@dataclass(frozen=True)
class ShardResult:
    """Result of one shard; a shard without samples has no file."""

    name: str
    samples: int
    bytes: int
    left_out: dict[str, int] = field(default_factory=dict)  # kind -> count
    bad_samples: list[dict[str, str]] = field(default_factory=list)  # the first of them


@dataclass(frozen=True)
class Conversion:
    """The output folder and its plan, as in convert.json."""

    folder: Path
    plan: dict[str, Any]

    def shards(self) -> dict[str, range]:
        """File name -> its range of records."""
        settings, records = Settings(**self.plan["settings"]), self.plan["source"]["records"]
        extension = "tar" if settings.to == "webdataset" else "array_record"
        size = settings.samples_per_shard
        starts = range(0, records, size)
        width = max(5, len(str(len(starts) - 1)))
        return {
            f"{number:0{width}d}.{extension}": range(start, min(start + size, records))
            for number, start in enumerate(starts)
        }

    def finished(self) -> dict[str, ShardResult]:
        """The complete shards."""
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
        """Writes convert.json with the results, and deletes the temporary files."""
        left_out = Counter(source.dropped.counts)
        for result in results.values():
            left_out.update(result.left_out)
        record = {
            **self.plan,
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
        """Deletes the temporary files."""
        shutil.rmtree(self.folder / ASIDE, ignore_errors=True)


def read_plan(folder: Path, settings: Settings, source: dict[str, Any]) -> dict[str, Any] | None:
    """The plan of an earlier run with equal settings; None in a new folder.

    `source`: facts of the source, with its "fingerprint" and the state of its "files".

    Raises UserError if the folder has other content.
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
    # The data come first, because the default shard size follows from them.
    compared = [
        ("other data (keys or captions)", plan["source"], source, "fingerprint"),
        ("files of other size or time of change", plan["source"], source, "files"),
        *((f"other {name}", plan["settings"], asdict(settings), name) for name in asdict(settings)),
    ]
    for what, there, here, name in compared:
        if there.get(name) != here[name]:
            raise UserError(
                f"--output={folder}: was begun with {what}: {there.get(name)!r} there,"
                f" {here[name]!r} now; give the same again, or a new folder"
            )
    return plan


def begin(folder: Path, settings: Settings, source: dict[str, Any]) -> dict[str, Any]:
    """Writes the plan of a new conversion, and returns it."""
    plan = {"source": source, "settings": asdict(settings), "complete": False}
    write_json(folder / RECORD, plan)
    return plan


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates and locks the folder for this process. Raises UserError if another holds it."""
    with telling(f"--output={folder}"):
        (folder / ASIDE).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A killed run may have left these files.
        for left in folder.rglob(f"{ASIDE_PREFIX}*"):
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
