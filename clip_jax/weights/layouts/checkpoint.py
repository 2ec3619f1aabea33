"""Training checkpoints as a layout of weights: the reader for `training/run/checkpoint.py`.

A checkpoint DIR/STEP holds separately restorable parts: `params` (trained), `ema` (their moving
average, optional), `rest` (optimizer state, step, random key) and `identity`, one JSON text: the
resolved configuration, the architecture with its image transform, the tokenizer with its files,
and the position in the data. orbax writes into a temporary folder and commits at the end, so a
partial checkpoint never looks complete.
"""

import contextlib
import gc
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from clip_jax.errors import UserError, one_line
from clip_jax.models.config import ClipConfig

_ECHO_SECONDS = 0.3  # time that threads may go on after a failed read
_REASON_LETTERS = 100  # limit for another library's message on a damaged file

_ON_HOST = "numpy arrays"  # marks a wanted part to be read as numpy arrays
_PARTS = ("params", "rest", "identity")  # present in every checkpoint
# Readers rely on these objects of an identity.
_IDENTITY = (
    "config",
    "config.optimizer",
    "architecture",
    "tokenizer",
    "tokenizer.spec",
    "tokenizer.files",
    "data",
)
_UNREADABLE = (ValueError, KeyError, FileNotFoundError, ocp.errors.InvalidLayoutError)


class DamagedCheckpoint(UserError):
    """A checkpoint whose files are missing or cut off."""


def load_parts(directory: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Parts of a checkpoint. Raises `DamagedCheckpoint` if they cannot be read.

    The error does not chain orbax's errors: their frames keep hundreds of coroutines alive, each of
    which complains on stderr when it is freed, at exit at the latest.
    """
    missing = _missing(directory)
    if missing:
        raise DamagedCheckpoint(f"{directory}: is not complete (no {', '.join(missing)})")
    with _without_echoes():
        parts, reason = _try_to_load(directory, wanted)
        if parts is None:
            time.sleep(_ECHO_SECONDS)
            gc.collect()  # frees the coroutines that were never awaited, while nothing is printed
    if parts is None:
        raise DamagedCheckpoint(f"{directory}: {reason}")
    return parts


def _try_to_load(
    directory: Path, wanted: dict[str, Any]
) -> tuple[dict[str, Any], str] | tuple[None, str]:
    """(parts, ""), or (None, the reason why they cannot be read)."""
    try:
        if any(tree is _ON_HOST for tree in wanted.values()):
            wanted = _with_shapes(directory, wanted)
        return ocp.load_checkpointables(directory.absolute(), wanted), ""
    except _UNREADABLE as error:
        cause = _innermost(error)
        # No library names a file that is not JSON.
        part = _not_json(directory) or _part_in(error, directory, wanted)
        return None, f"{part} is damaged or incomplete ({one_line(cause, _REASON_LETTERS)})"


def _with_shapes(directory: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    """Replaces `_ON_HOST` by numpy arrays of the part's shapes that take up no memory.

    Without them orbax would put the arrays on the run's original devices, which may not exist on
    this machine.
    """
    stored = ocp.checkpointables_metadata(directory.absolute()).metadata
    return {
        part: jax.tree.map(
            lambda leaf: np.broadcast_to(np.empty((), leaf.dtype), leaf.shape), stored[part]
        )
        if tree is _ON_HOST
        else tree
        for part, tree in wanted.items()
    }


def _innermost(error: BaseException) -> BaseException:
    """The root error: orbax wraps file errors in errors about itself."""
    chain = _chain(error)
    return next((e for e in reversed(chain) if isinstance(e, ValueError | OSError)), error)


def _chain(error: BaseException) -> list[BaseException]:
    """An error and its causes, the root cause last."""
    chain = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(inner)
    return chain


def _part_in(error: BaseException, directory: Path, wanted: dict[str, Any]) -> str:
    """The part whose path an error names, or all wanted parts if it names none."""
    text = " ".join(str(inner) for inner in _chain(error))
    named = [part for part in wanted if f"{directory.absolute() / part}/" in text]
    return ", ".join(named or wanted)


def _not_json(directory: Path) -> str | None:
    """The first of a checkpoint's JSON files that cannot be parsed, or None."""
    patterns = ("*/_METADATA", "*/_sharding", "*/array_metadatas/*")
    found = [path for pattern in patterns for path in sorted(directory.glob(pattern))]
    for path in (*found, directory / "identity" / "_strings.json"):
        try:
            json.loads(path.read_bytes())
        except (OSError, ValueError):
            return str(path.relative_to(directory))
    return None


@contextlib.contextmanager
def _without_echoes() -> Iterator[None]:
    """Silences warnings, and the failures of other reads once one has failed.

    There are hundreds, each a page long, from threads and coroutines that go on for a moment.
    """
    hook = sys.unraisablehook
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "absl")}
    with warnings.catch_warnings():
        # orbax warns of this if the part's metadata is damaged.
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        # A failed read leaves other reads behind that nobody awaits.
        warnings.filterwarnings("ignore", category=RuntimeWarning, message="coroutine")
        try:
            for name in levels:
                logging.getLogger(name).setLevel(logging.CRITICAL + 1)
            sys.unraisablehook = lambda _: None
            yield
        finally:
            sys.unraisablehook = hook
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def read_identity(directory: Path) -> dict[str, Any]:
    """The identity of a checkpoint folder. Raises `DamagedCheckpoint`, also for no checkpoint."""
    stored = load_parts(directory, {"identity": None})["identity"]
    try:
        identity = json.loads(stored["json"])
        _check_identity(identity)
    except (ValueError, KeyError, TypeError, UserError) as error:
        reason = one_line(repr(error) if isinstance(error, KeyError) else error, _REASON_LETTERS)
        raise DamagedCheckpoint(f"{directory}: identity is damaged ({reason})") from None
    return identity


def _check_identity(identity: Any) -> None:
    """Raises ValueError or `UserError` unless the JSON has the form that `Run.identity` writes."""
    if not isinstance(identity, dict):
        raise ValueError(f"a {type(identity).__name__}, not an object")
    for key in _IDENTITY:
        value: Any = identity
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        if not isinstance(value, dict):
            raise ValueError(f"{key} is missing or not an object")
    if "ema_decay" not in identity["config"]["optimizer"]:
        raise ValueError("config.optimizer.ema_decay is missing")
    ClipConfig.from_dict(identity["architecture"])


def read_params(directory: Path) -> dict[str, Any]:
    """A checkpoint's parameters as numpy arrays, or their moving average if it has one.

    Raises `DamagedCheckpoint` if they cannot be read.
    """
    has_average = read_identity(directory)["config"]["optimizer"]["ema_decay"] is not None
    name = "ema" if has_average else "params"
    return load_parts(directory, {name: _ON_HOST})[name]


def _missing(path: Path) -> list[str]:
    """Names of required files that this checkpoint lacks; their content is not read."""
    names = [f"{part}/_METADATA" for part in _PARTS]
    return [name for name in names if not (path / name).is_file()]


def is_checkpoint(path: Path) -> bool:
    """Whether a folder is a checkpoint, or the remains of one."""
    return (path / "_CHECKPOINT_METADATA").is_file() or (
        (path / "identity").is_dir() and (path / "params").is_dir()
    )


def steps_in(directory: Path) -> list[Path]:
    """Entries named by a step number, newest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: -int(p.name))


def checkpoints_in(directory: Path) -> list[Path]:
    """The checkpoints in a folder of steps, damaged or not, newest first.

    Empty folders and files count, as remains of checkpoints; folders with other content, such as
    another program's model, do not.
    """
    return [path for path in steps_in(directory) if not _is_foreign(path)]


def _is_foreign(path: Path) -> bool:
    if not path.is_dir() or is_checkpoint(path):
        return False
    names = {entry.name for entry in path.iterdir()}
    return bool(names) and not names & {*_PARTS, "ema"}
