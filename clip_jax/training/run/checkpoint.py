"""Checkpoints of a run, through orbax; `weights/layouts/checkpoint.py` is their reader."""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from clip_jax.files.disk import writing
from clip_jax.training.config import CheckpointConfig
from clip_jax.training.run.clock import SaveTimer
from clip_jax.training.step.state import TrainState
from clip_jax.weights.layouts.checkpoint import load_parts, read_identity, steps_in

# This ends the error of a full disk.
GO_ON = "; the same command then goes on from the newest checkpoint"

policies = ocp.training.preservation_policies

# Each device writes a slice of a replicated array of at least this size. For smaller arrays,
# compiling a slice for each device and shape would take longer than writing.
_MIN_SLICE_BYTES = 16 << 20


class Checkpoints:
    """Checkpoints of one run: asynchronous saves, retention, restoring.

    Reading works at once; call `open` before the first save.
    """

    def __init__(self, directory: Path, config: CheckpointConfig):
        self._config = config
        self._timer = SaveTimer(config.every_minutes)
        self._directory = directory
        self._checkpointer: Any = None
        self._saving: Any = None  # the save in progress

    def steps(self) -> list[int]:
        """Returns the steps that have a folder, damaged or not, newest first."""
        return [int(path.name) for path in steps_in(self._directory)]

    def open(self, damaged: Sequence[int] = ()) -> None:
        """Enables saving and retention; every process of the job must call it.

        Before that, renames the folders of the steps in `damaged` to STEP.damaged.
        """
        if jax.process_index() == 0:
            for step in damaged:
                _set_aside(self._directory / str(step))
        multihost_utils.sync_global_devices("damaged checkpoints are set aside")
        kept: list[Any] = [policies.LatestN(self._config.keep_newest)]
        if self._config.keep_every_steps:
            kept.append(policies.EveryNSteps(self._config.keep_every_steps))
        self._checkpointer = ocp.training.Checkpointer(
            self._directory.absolute(),
            save_decision_policy=_Always(),
            preservation_policy=policies.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            context=_context(),
        )

    def due(self, step: int) -> bool:
        """Whether a save is due after `step`, by steps or minutes; must be called after every step.

        Raises the error of the last asynchronous save, if it failed.
        """
        if self._saving is not None:
            with contextlib.suppress(TimeoutError), self._writing():
                self._saving.result(timeout=0)
                self._saving = None
        every = self._config.every_steps
        late = self._timer.due(step)
        return late or bool(every and step % every == 0)

    def save(self, state: TrainState, identity: dict[str, Any], wait: bool = False) -> None:
        """Starts a save of the state's step, unless that step is already saved."""
        step = int(state.step)
        self._timer.reset()
        latest = self._checkpointer.latest
        if latest is not None and int(latest.step) == step:
            return
        parts = {"params": state.params, "rest": _rest(state)}
        if state.ema_params is not None:
            parts["ema"] = state.ema_params
        parts["identity"] = {"json": json.dumps(identity)}
        with self._writing():
            self._saving = self._checkpointer.save_checkpointables_async(step, parts)
            if wait:
                self._checkpointer.wait()

    def identity(self, step: int) -> dict[str, Any]:
        """Reads a checkpoint's metadata (`Run.identity`). Raises `DamagedCheckpoint`."""
        return read_identity(self._directory / str(step))

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Reads the state of a checkpoint with the shardings of `abstract`.

        Raises `DamagedCheckpoint`.
        """
        wanted = {"params": abstract.params, "rest": _rest(abstract)}
        if abstract.ema_params is not None:
            wanted["ema"] = abstract.ema_params
        parts = load_parts(self._directory / str(step), wanted)
        return abstract.replace(
            params=parts["params"], ema_params=parts.get("ema"), **parts["rest"]
        )

    def close(self) -> None:
        """Waits for a save in progress, and closes the checkpointer."""
        if self._checkpointer is not None:
            with self._writing():
                self._checkpointer.close()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self._directory, GO_ON)


def _context() -> ocp.Context:
    saving = ocp.options.ArrayOptions.Saving(min_slice_bytes_for_replica_parallel=_MIN_SLICE_BYTES)
    return ocp.Context(array_options=ocp.options.ArrayOptions(saving=saving))


class _Always(ocp.training.save_decision_policies.SaveDecisionPolicy):
    """Policy that saves on every call, since the training loop decides (`Checkpoints.due`)."""

    def should_save(self, *_: Any, **__: Any) -> bool:
        return True


def _rest(state: TrainState) -> dict[str, Any]:
    adversary = {} if state.adversary is None else {"adversary": state.adversary}
    return {
        **adversary,
        "step": state.step,
        "opt_state": state.opt_state,
        "key": state.key,
        "failed": state.failed,
    }


def _set_aside(path: Path) -> None:
    """Renames the folder of a damaged step, so that the step can be saved again."""
    aside = path.with_name(f"{path.name}.damaged")
    if aside.is_file():
        aside.unlink()
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
