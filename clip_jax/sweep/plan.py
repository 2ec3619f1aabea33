"""The runs of a sweep: their names, folders and states."""

import ast
import hashlib
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.sweep import Overrides

STATE_FILE = "sweep_run.json"
MAX_NAME_LENGTH = 120  # bytes; file systems stop at 255, and people long before
KEY_PATTERN = re.compile(r"[A-Za-z_]\w*(\.\w+)*", re.ASCII)


@dataclass(frozen=True)
class Run:
    """One run of a sweep: its overrides, and its directory, named after them."""

    name: str
    overrides: Overrides
    workdir: str

    def flags(self) -> list[str]:
        """The trainer's flags that make this run differ from the config file."""
        return [f"--workdir={self.workdir}"] + [
            f"--config.{key}={value}" for key, value in self.overrides.items()
        ]

    def state(self) -> str:
        """`finished`, `failed`, `started` (or stopped half way) or `waiting`."""
        directory = Path(self.workdir)
        if record := self.read_record():
            return str(record.get("state", "started"))
        # No record: a printed command or SLURM ran it.
        if is_exported(directory):
            return "finished"
        return "started" if (directory / "metrics.jsonl").exists() else "waiting"

    def is_finished(self, trainer_flags: Sequence[str]) -> bool:
        """Whether there is nothing left to do for these flags (others call for another look)."""
        if self.state() != "finished":
            return False
        record = self.read_record()
        return not record or record.get("trainer_flags") == list(trainer_flags)

    def read_record(self) -> dict[str, Any]:
        """What the launcher last wrote about this run; empty where it never ran it."""
        try:
            record = json.loads((Path(self.workdir) / STATE_FILE).read_text())
        except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
            return {}
        return record if isinstance(record, dict) else {}

    def write_record(self, state: str, trainer_flags: Sequence[str], **more: Any) -> None:
        """Writes the state in one move, so that a killed launcher never leaves half a file."""
        path = Path(self.workdir) / STATE_FILE
        record = {"state": state, "overrides": self.overrides, "trainer_flags": list(trainer_flags)}
        scratch = path.with_suffix(".tmp")
        scratch.write_text(json.dumps(record | more, indent=1, default=str) + "\n")
        scratch.replace(path)


def is_exported(workdir: Path) -> bool:
    """Whether a run has come to its end: its last act is the export of its newest checkpoint.

    A run that was given more steps and then stopped still has the export of the fewer steps.
    """
    if not (workdir / "model").is_dir():
        return False
    saved = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    try:
        step = json.loads((workdir / "model" / "config.json").read_text(encoding="utf-8"))["step"]
    except (OSError, ValueError, KeyError, TypeError):
        return True  # not one of our exports, and so nothing that we could go by
    return step is None or step >= max(saved, default=0)


def load_runs(config: str, workdir: str) -> list[Run]:
    """The runs of a config file's `sweep()`; `config` may end in `:argument`, as for the trainer.

    Raises UserError where the file, its `sweep()` or what that returns cannot be used.
    """
    path = Path(config.partition(":")[0])
    if not path.is_file():
        raise UserError(f"--config={config}: no such file; give a Python file such as configs/X.py")
    spec = importlib.util.spec_from_file_location("swept_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={config}: not a Python file; give one such as configs/X.py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "sweep", None)):
            raise UserError(
                f"{path}: has no sweep() function; add one that returns a list of override dicts, "
                'such as [{"optimizer.learning_rate": 1e-3}]'
            )
        settings = module.sweep()
    except UserError:
        raise
    except Exception as error:  # the user's own code may raise anything
        raise UserError(f"{path}: cannot be run: {type(error).__name__}: {error}") from error
    return plan_runs(settings, workdir, str(path))


def plan_runs(settings: Any, workdir: str, source: str) -> list[Run]:
    """Names the settings and gives each its directory; `source` is named in errors."""
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
    short = _short_keys(sorted({key for setting in settings for key in setting}))
    runs: dict[str, Run] = {}
    for setting in settings:
        name = _run_name(setting, short)
        if name in runs:
            raise UserError(f"{source}: sweep() has the same run twice: {name}")
        runs[name] = Run(name, dict(setting), f"{workdir.rstrip('/') or '/'}/{name}")
    return list(runs.values())


def _plain(setting: Any) -> Any:
    """The same setting with numpy's scalars (from geomspace and the like) as Python's."""
    if not isinstance(setting, dict):
        return setting
    return {
        key: value.item() if getattr(value, "shape", None) == () else value
        for key, value in setting.items()
    }


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each key's shortest ending that is its own: optimizer.learning_rate -> learning_rate."""
    short = {}
    for key in keys:
        parts = key.split(".")
        endings = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
        others = [f".{other}" for other in keys if other != key]
        short[key] = next(
            (e for e in endings if not any(other.endswith(f".{e}") for other in others)), key
        )
    return short


def _run_name(setting: Overrides, short: dict[str, str]) -> str:
    """A readable directory name; where it cannot tell the setting exactly, a hash is added."""
    texts = {key: _value_text(value) for key, value in setting.items()}
    name = ",".join(f"{short[key]}={text}" for key, (text, _) in texts.items())
    if len(name) <= MAX_NAME_LENGTH and all(is_exact for _, is_exact in texts.values()):
        return name
    canonical = json.dumps({key: repr(value) for key, value in setting.items()}, sort_keys=True)
    return f"{name[:MAX_NAME_LENGTH]}-{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


def _value_text(value: Any) -> tuple[str, bool]:
    """A value as a piece of a file name, and whether the piece stands for this value alone."""
    if isinstance(value, float):
        return f"{value:.6g}", float(f"{value:.6g}") == value and not value.is_integer()
    if value is None or isinstance(value, int):
        return str(value), True
    text = re.sub(r"[^A-Za-z0-9._+-]+", "_", str(value)).strip("_")
    return text, isinstance(value, str) and text == value and not _is_literal(text)


def _is_literal(text: str) -> bool:
    """Whether the string reads as a number, a boolean or None, which then share its name."""
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True
