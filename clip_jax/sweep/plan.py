"""Runs of a sweep: their names, folders and states."""

import ast
import hashlib
import json
import re
import runpy
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.files.disk import write_text
from clip_jax.sweep import Overrides

STATE_FILE = "sweep_run.json"
MAX_NAME_LENGTH = 120  # bytes; readable, and far below the limit of file systems, 255
KEY_PATTERN = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its overrides, and its directory, which is named after them."""

    name: str
    overrides: Overrides
    workdir: str

    @property
    def log(self) -> Path:
        """The output of the run, to which every attempt appends."""
        return Path(self.workdir) / "train.log"

    def flags(self) -> list[str]:
        """Returns the trainer's flags that make this run differ from the config file."""
        return [f"--workdir={self.workdir}"] + [
            f"--config.{key}={value}" for key, value in self.overrides.items()
        ]

    def state(self) -> str:
        """Returns `finished`, `failed`, `started` (running or stopped half way) or `waiting`."""
        directory = Path(self.workdir)
        if record := self.read_record():
            return str(record.get("state", "started"))
        # A run without a record was started by a printed command or SLURM, or not at all.
        if is_exported(directory):
            return "finished"
        return "started" if (directory / "metrics.jsonl").exists() else "waiting"

    def is_finished(self, trainer_flags: Sequence[str]) -> bool:
        """Whether the run has finished with these flags; with others it must run again."""
        if self.state() != "finished":
            return False
        record = self.read_record()
        return not record or record.get("trainer_flags") == list(trainer_flags)

    def read_record(self) -> dict[str, Any]:
        """Returns the launcher's last record of this run; empty if there is none."""
        try:
            record = json.loads((Path(self.workdir) / STATE_FILE).read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return {}
        return record if isinstance(record, dict) else {}

    def write_record(self, state: str, trainer_flags: Sequence[str], **more: Any) -> None:
        """Writes the state atomically, so that a killed launcher never leaves half a file."""
        record = {"state": state, "overrides": self.overrides, "trainer_flags": list(trainer_flags)}
        text = json.dumps(record | more, indent=1, default=str) + "\n"
        write_text(Path(self.workdir) / STATE_FILE, text)


def is_exported(workdir: Path) -> bool:
    """Whether a run is complete: it ends by exporting its newest checkpoint.

    The steps are compared because a run that was extended and then stopped still has the export
    of its former end.
    """
    if not (workdir / "model").is_dir():
        return False
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    try:
        step = json.loads((workdir / "model" / "config.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return True  # another tool's export has no step to compare
    return step is None or step >= max(saved, default=0)


def load_runs(config: str, workdir: str) -> list[Run]:
    """Loads the runs of a config file's `sweep()`; `config` may end in `:argument`.

    Raises UserError if the file, its `sweep()` or the returned value cannot be used.
    """
    path = Path(config.partition(":")[0])
    if not path.is_file():
        raise UserError(f"--config={config}: no such file; give a Python file such as configs/X.py")
    try:
        sweep = runpy.run_path(str(path)).get("sweep")
        if not callable(sweep):
            raise UserError(
                f"{path}: has no sweep() function; add one that returns a list of override dicts, "
                'such as [{"optimizer.learning_rate": 1e-3}]'
            )
        settings = sweep()
    except UserError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"{path}: cannot be run: {type(error).__name__}: {error}") from error
    return plan_runs(settings, workdir, str(path))


def plan_runs(settings: Any, workdir: str, source: str) -> list[Run]:
    """Gives each setting a name and a directory; `source` is named in errors."""
    if not isinstance(settings, list | tuple) or not settings:
        raise UserError(f"{source}: sweep() returned {settings!r}; it must return a list of dicts")
    settings = [_plain(setting) for setting in settings]
    for number, setting in enumerate(settings):
        if not isinstance(setting, dict) or not setting:
            raise UserError(f"{source}: sweep() item {number} is {setting!r}, not a dict of values")
        for key, value in setting.items():
            if not isinstance(key, str) or not KEY_PATTERN.fullmatch(key):
                raise UserError(
                    f"{source}: sweep() item {number} has the key {key!r}; "
                    "keys are dotted config keys such as optimizer.learning_rate"
                )
            if not isinstance(value, str | int | float | bool | list | tuple | None):
                raise UserError(
                    f"{source}: sweep() item {number} has {key}={value!r}; "
                    "values are numbers, strings, booleans, None or lists of these"
                )
    keys = {key for setting in settings for key in setting}
    lasts = {key: key.rpartition(".")[2] for key in keys}
    # optimizer.learning_rate -> learning_rate, unless another key ends like that
    count = Counter(lasts.values())
    short = {key: last if count[last] == 1 else key for key, last in lasts.items()}
    runs: dict[str, Run] = {}
    for setting in settings:
        name = _run_name(setting, short)
        if name in runs:
            raise UserError(f"{source}: sweep() has the same run twice: {name}")
        runs[name] = Run(name, dict(setting), f"{workdir.rstrip('/') or '/'}/{name}")
    return list(runs.values())


def _plain(setting: Any) -> Any:
    """Converts numpy scalars in a setting (from geomspace, say) to Python's."""
    if not isinstance(setting, dict):
        return setting
    return {
        key: value.item() if getattr(value, "shape", None) == () else value
        for key, value in setting.items()
    }


def _run_name(setting: Overrides, short: dict[str, str]) -> str:
    """Returns a readable directory name, with a hash if the name alone would be ambiguous."""
    parts, is_exact = [], True
    for key, value in setting.items():
        text = re.sub(r"[^A-Za-z0-9._+-]+", "_", str(value)).strip("_")
        # A string that reads as a literal (5, True, None) has the text of another value.
        is_exact &= text == str(value) and not (isinstance(value, str) and _is_literal(text))
        parts.append(f"{short[key]}={text}")
    name = ",".join(parts)
    if len(name) <= MAX_NAME_LENGTH and is_exact:
        return name
    canonical = json.dumps({key: repr(value) for key, value in setting.items()}, sort_keys=True)
    return f"{name[:MAX_NAME_LENGTH]}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def _is_literal(text: str) -> bool:
    """Whether a string reads as a Python literal (5, True, None), which has the same text."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True
