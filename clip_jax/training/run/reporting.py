"""Reports of a step, one step later: its row, the progress line, a stop if it failed."""

import json

import jax
import numpy as np

from clip_jax.errors import UserError
from clip_jax.models.flops import peak_flops
from clip_jax.training.log.profile import CompileWatch
from clip_jax.training.run.clock import Clock
from clip_jax.training.run.data import DataWatch
from clip_jax.training.run.opening import Run
from clip_jax.training.step.adversary import ADVERSARY_LOSS
from clip_jax.training.step.compiled import run_flops
from clip_jax.training.step.state import TrainState

Metrics = dict[str, jax.Array]


class StepReporter:
    """Reads the metrics of a step after the next one has been dispatched."""

    def __init__(self, run: Run, clock: Clock, compiles: CompileWatch):
        self._run = run
        self._clock = clock
        self._compiles = compiles
        self._data = DataWatch(run.batches, run.config.data.workers)
        self._pending: tuple[int, Metrics, np.ndarray] | None = None

    def dispatched(self, step: int, metrics: Metrics, indices: np.ndarray) -> None:
        """Registers a dispatched step; `indices` are its records on this host."""
        self._pending = step, metrics, indices

    def report(self, state: TrainState) -> None:
        """Waits for the dispatched step, if any, and writes its reports.

        Raises `UserError` if its loss or gradient was not finite.
        """
        if self._pending is None:
            return
        step, metrics, indices = self._pending
        self._pending = None
        loss = float(metrics["loss"])
        run, clock = self._run, self._clock
        clock.tick()
        if bool(metrics["failed"]):
            _stop_not_finite(run, state, step, metrics, indices)
        seconds, steps = clock.seconds - clock.logged_seconds, step - clock.logged_step
        if not clock.compiled:  # the first step compiles, so rates begin after it
            clock.compiled = True
            run.progress.say(f"first step, with compilation: {seconds:.1f} s")
            clock.started_step, clock.rate_start = step, clock.seconds
            clock.logged(step)
        if step > clock.started_step:
            per_step = (clock.seconds - clock.rate_start) / (step - clock.started_step)
            rate = run.config.batch_size / per_step
            run.progress.show(step, loss, rate, per_step * (run.steps - step))
        if step % run.config.log_every_steps == 0 or step in (1, run.steps):
            self._log(step, loss, metrics, max(seconds, 1e-9), steps)
            clock.logged(step)

    def _log(self, step: int, loss: float, metrics: Metrics, seconds: float, steps: int) -> None:
        run, clock = self._run, self._clock
        samples_per_second = run.config.batch_size * steps / seconds
        peak = peak_flops(jax.devices()[0].device_kind)
        per_second = run_flops(run.config, run.architecture) * steps / seconds
        wait_fraction = min(1.0, clock.wait_seconds / seconds)
        advice = self._data.advice(step, wait_fraction) if step > clock.started_step else None
        if advice is not None:
            run.progress.say(advice)
        run.log.log_metrics(
            {
                "step": step,
                "samples_seen": step * run.config.batch_size,
                "loss": loss,
                **{name: float(metrics[name]) for name in (ADVERSARY_LOSS,) if name in metrics},
                "logit_scale": float(metrics["logit_scale"]),
                "learning_rate": float(metrics["learning_rate"]),
                "grad_norm": float(metrics["grad_norm"]),
                "samples_per_second": samples_per_second,
                "samples_per_second_per_device": samples_per_second / run.mesh.size,
                "step_seconds": seconds / steps,
                "data_wait_fraction": wait_fraction,
                "model_flops_per_second": per_second,
                "model_flops_utilization": per_second / peak / run.mesh.size if peak else None,
                "bad_records": len(run.batches.tally.bad),
                **self._data.row(seconds),
                "seconds": clock.seconds,
                "compile_seconds": self._compiles.seconds,
                "recompilations": self._compiles.recompilations,
            }
        )


def _stop_not_finite(
    run: Run, state: TrainState, step: int, metrics: Metrics, indices: np.ndarray
) -> None:
    """Saves the last good state and the batch's keys, and raises `UserError`."""
    keys = [run.source.key(int(index)) for index in indices]
    host = f"_process_{jax.process_index()}" if jax.process_count() > 1 else ""
    path = run.workdir / f"not_finite_step_{step}{host}.json"
    values = {name: float(value) for name, value in metrics.items()}
    about = {"step": step, **{k: repr(v) for k, v in values.items()}, "keys": keys}
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    good = state.replace(failed=state.failed & False)
    run.checkpoints.save(good, run.identity(int(good.step)), wait=True)
    raise UserError(
        f"step {step}: loss={values['loss']} grad_norm={values['grad_norm']} is not finite; the "
        f"state before it is saved (step {int(good.step)}), the batch's keys are in {path} "
        f"(first: {', '.join(keys[:3])}); lower optimizer.learning_rate or look at these records"
    )
