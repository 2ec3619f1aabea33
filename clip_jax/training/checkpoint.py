"""Saving and resuming, through orbax. The only file that knows orbax's API.

A checkpoint DIR/STEP holds separately restorable parts: `params` (what is trained), `ema` (their
moving average, where there is one), `rest` (optimizer state, step, random key) and `identity`, one
JSON text: the resolved configuration, the architecture with its image transform, the tokenizer
with its files, and the position in the data. orbax writes into a temporary folder and commits at
the end, so that a half-written checkpoint is never seen as one.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from clip_jax.errors import UserError
from clip_jax.training.clock import SaveTimer
from clip_jax.training.config import CheckpointConfig
from clip_jax.training.state import TrainState

policies = ocp.training.preservation_policies

# Of an array that lies on several devices whole, each writes a slice if it has so many bytes. Of
# smaller ones a compiled slice for each device and shape would take longer than the writing.
_MIN_SLICE_BYTES = 16 << 20


class Checkpoints:
    """The checkpoints of one run: asynchronous saves, retention, the newest one back."""

    def __init__(self, directory: Path, config: CheckpointConfig):
        kept: list[Any] = [policies.LatestN(config.keep_newest)]
        if config.keep_every_steps:
            kept.append(policies.EveryNSteps(config.keep_every_steps))
        if jax.process_index() == 0:
            set_aside_incomplete(directory)
        multihost_utils.sync_global_devices("incomplete checkpoints are set aside")
        self._config = config
        self._timer = SaveTimer(config.every_minutes)
        self._checkpointer = ocp.training.Checkpointer(
            directory.absolute(),
            save_decision_policy=_Always(),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            context=_context(),
        )
        self._directory = directory

    @property
    def newest_step(self) -> int | None:
        """The step of the newest complete checkpoint, as this process sees it."""
        latest = self._checkpointer.latest
        return None if latest is None else int(latest.step)

    def due(self, step: int) -> bool:
        """Whether a save is due after `step`, by steps or by minutes; asked after every step."""
        every = self._config.every_steps
        late = self._timer.due(step)
        return late or bool(every and step % every == 0)

    def save(self, state: TrainState, identity: dict[str, Any], wait: bool = False) -> None:
        """Starts a save of the state's step; a step that is already saved is left as it is."""
        step = int(state.step)
        self._timer.reset()
        if self.newest_step == step:
            return
        parts = {"params": state.params, "rest": _rest(state)}
        if state.ema_params is not None:
            parts["ema"] = state.ema_params
        parts["identity"] = {"json": json.dumps(identity)}
        self._checkpointer.save_checkpointables_async(step, parts)
        if wait:
            self._checkpointer.wait()

    def identity(self, step: int) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return read_identity(self._directory / str(step))

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a checkpoint, on the shards that `abstract` names."""
        wanted = {"params": abstract.params, "rest": _rest(abstract)}
        if abstract.ema_params is not None:
            wanted["ema"] = abstract.ema_params
        try:
            parts = self._checkpointer.load_checkpointables(step, wanted)
        except (ValueError, KeyError, FileNotFoundError) as error:
            raise UserError(
                f"checkpoint {self._directory / str(step)} cannot be restored: "
                f"{_first_line(error)}; it is damaged: move it away to go on from the one before it"
            ) from error
        return abstract.replace(
            params=parts["params"], ema_params=parts.get("ema"), **parts["rest"]
        )

    def close(self) -> None:
        """Waits for a save in progress."""
        self._checkpointer.close()


def _context() -> ocp.Context:
    saving = ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES)
    return ocp.Context(array_options=ocp.options.ArrayOptions(saving=saving))


class _Always(ocp.training.save_decision_policies.SaveDecisionPolicy):
    """The training loop decides when to save (`Checkpoints.due`)."""

    def should_save(self, *_: Any, **__: Any) -> bool:
        return True


def _rest(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "opt_state": state.opt_state,
        "key": state.key,
        "failed": state.failed,
    }


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _load_parts(directory: Path, wanted: dict[str, Any]) -> dict[str, Any]:
    with warnings.catch_warnings():
        # Placement is chosen by the caller afterwards; orbax warns that it reads it from the file.
        warnings.filterwarnings("ignore", message="Sharding info not provided")
        return ocp.load_checkpointables(directory.absolute(), wanted)


def read_identity(directory: Path) -> dict[str, Any]:
    """The identity of a checkpoint folder. Raises `UserError` when it is none, or damaged."""
    try:
        return json.loads(_load_parts(directory, {"identity": None})["identity"]["json"])
    except (ValueError, KeyError, FileNotFoundError, ocp.errors.InvalidLayoutError) as error:
        raise UserError(
            f"{directory}: not a complete clip_jax checkpoint ({_first_line(error)})"
        ) from error


def read_params(directory: Path) -> dict[str, Any]:
    """The parameters of a checkpoint alone, as numpy arrays: their moving average where it has one.

    Raises `UserError` when they cannot be read.
    """
    has_average = read_identity(directory)["config"]["optimizer"]["ema_decay"] is not None
    name = "ema" if has_average else "params"
    try:
        params = _load_parts(directory, {name: None})[name]
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UserError(
            f"{directory}: {name} cannot be read from this checkpoint ({_first_line(error)})"
        ) from error
    return jax.tree.map(np.asarray, params)


def is_complete(path: Path) -> bool:
    """Whether a folder holds all parts of a checkpoint; what is in them is not looked at."""
    return all((path / part / "_METADATA").is_file() for part in ("params", "rest", "identity"))


def _steps(directory: Path) -> list[Path]:
    """The step folders, newest first."""
    if not directory.is_dir():
        return []
    return sorted((p for p in directory.iterdir() if p.name.isdigit()), key=lambda p: -int(p.name))


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint in DIR/checkpoints, or None."""
    return next((path for path in _steps(directory) if is_complete(path)), None)


def set_aside_incomplete(directory: Path) -> None:
    """Renames step folders that lack a part, such as an interrupted copy leaves, out of the way."""
    for path in _steps(directory):
        if not is_complete(path):
            aside = path.with_name(f"{path.name}.incomplete")
            logging.warning("%s is not a complete checkpoint: renamed to %s", path, aside.name)
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
