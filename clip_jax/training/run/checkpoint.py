"""Saving and resuming a run, through orbax; `weights/layouts/checkpoint.py` reads what is saved."""

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

# What to do after a disk has been full.
GO_ON = "; the same command then goes on from the newest checkpoint"

policies = ocp.training.preservation_policies

# Of an array that lies on several devices whole, each writes a slice if it has so many bytes. Of
# smaller ones a compiled slice for each device and shape would take longer than the writing.
_MIN_SLICE_BYTES = 16 << 20


class Checkpoints:
    """The checkpoints of one run: asynchronous saves, retention, the newest one back.

    What is there can be read from the beginning; `open` it before the first save.
    """

    def __init__(self, directory: Path, config: CheckpointConfig):
        self._config = config
        self._timer = SaveTimer(config.every_minutes)
        self._directory = directory
        self._checkpointer: Any = None
        self._saving: Any = None  # the save in progress

    def steps(self) -> list[int]:
        """The steps of which there is a folder, damaged or not, the newest first."""
        return [int(path.name) for path in steps_in(self._directory)]

    def open(self, damaged: Sequence[int] = ()) -> None:
        """Begins to save, and to remove what retention does not keep.

        Folders of the steps in `damaged` are renamed first, to STEP.damaged; every process of the
        job calls it.
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
        """Whether a save is due after `step`, by steps or by minutes; asked after every step.

        Raises what the last save has failed of, behind the run's back.
        """
        if self._saving is not None:
            with contextlib.suppress(TimeoutError), self._writing():
                self._saving.result(timeout=0)
                self._saving = None
        every = self._config.every_steps
        late = self._timer.due(step)
        return late or bool(every and step % every == 0)

    def save(self, state: TrainState, identity: dict[str, Any], wait: bool = False) -> None:
        """Starts a save of the state's step; a step that is already saved is left as it is."""
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
        """What a checkpoint says of itself. Raises `DamagedCheckpoint`."""
        return read_identity(self._directory / str(step))

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """The state of a checkpoint, on the shards that `abstract` names.

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
        """Waits for a save in progress."""
        if self._checkpointer is not None:
            with self._writing():
                self._checkpointer.close()

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self._directory, GO_ON)


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


def _set_aside(path: Path) -> None:
    """Renames the folder of a step out of the way, so that the step can be saved again."""
    aside = path.with_name(f"{path.name}.damaged")
    if aside.is_file():
        aside.unlink()
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
