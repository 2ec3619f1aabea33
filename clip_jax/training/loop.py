"""The training run, from a configuration to an exported model; resumes by itself.

Nothing here waits for the device but where it must: step n + 1 is dispatched before the metrics of
step n are read, and checkpoints are written behind the run's back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from clip_jax.clip import Clip
from clip_jax.data.sources import open_source
from clip_jax.errors import UserError
from clip_jax.evaluation.tasks import Embedders, TaskData, check_tasks, run_task
from clip_jax.models.flops import peak_flops, step_flops
from clip_jax.sharding import check_batch, global_batch, make_mesh
from clip_jax.training.config import TrainConfig
from clip_jax.training.program import jit_train_step
from clip_jax.training.run import Run, open_run
from clip_jax.training.state import TrainState
from clip_jax.weights.bundle import exported_step, write_bundle

Pending = tuple[int, dict[str, jax.Array], np.ndarray]  # step, its metrics, its record numbers


class Preemption:
    """Turns SIGTERM into a flag, which the loop looks at between two steps."""

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._before: Any = None

    def __enter__(self) -> Preemption:
        # With several hosts jax has a handler of its own, by which they agree on the step.
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, lambda *_: self.requested.set())
        return self

    def reached(self, step: int) -> bool:
        """Whether all hosts shall stop after this step."""
        if jax.process_count() == 1:
            return self.requested.is_set()
        return multihost_utils.reached_preemption_sync_point(step)

    def __exit__(self, *_: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)


def train(config: TrainConfig, workdir: Path) -> Clip | None:
    """Trains, or goes on training, the run in `workdir`, and exports the model to `workdir`/model.

    Returns the trained `Clip`, or None when SIGTERM ended the run early (it is saved then, and the
    same call goes on from there). Raises `UserError` for what the user can put right.
    """
    check_tasks(config.evaluation.tasks, task_data(config), "config.evaluation.tasks")
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_batch(mesh, config.batch_size, "config.batch_size")
    workdir = make_workdir(workdir)
    with Preemption() as preemption, only_trainer(workdir):
        _enable_compilation_cache(workdir)
        source = open_source(
            config.data.path,
            config.data.format,
            image_column=config.data.image_column,
            caption_column=config.data.caption_column,
            caption_template=config.data.caption_template,
        )
        with jax.set_mesh(mesh):
            run, state = open_run(config, workdir, source, mesh)
            try:
                if run.first_step < run.steps:
                    state = _train_steps(run, state, preemption)
                elif exported_step(workdir / "model") == run.steps:
                    run.progress.say(f"{workdir}: already trained to step {run.steps:,}")
                if int(state.step) < run.steps:
                    return None
                return _finish(run, state)
            finally:
                run.batches.close()
                run.checkpoints.close()
                run.log.close()


def make_workdir(workdir: Path) -> Path:
    """Creates the folder. Raises `UserError` where that is impossible, or it cannot be written."""
    if ":/" in str(workdir):
        raise UserError(f"--workdir={workdir}: must be a local folder; remote ones need a mount")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot be made ({error})") from error
    if not os.access(workdir, os.W_OK):
        raise UserError(f"--workdir={workdir}: cannot be written")
    return workdir.absolute()


@contextlib.contextmanager
def only_trainer(workdir: Path) -> Iterator[None]:
    """Holds the folder's lock on process 0. Raises `UserError` while another trainer has it.

    The kernel lets go of it when the process ends, however it ends.
    """
    if jax.process_index() != 0:
        yield
        return
    with open(workdir / ".lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"--workdir={workdir}: another trainer is at work in it") from error
        yield


def _enable_compilation_cache(workdir: Path) -> None:
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))


def _train_steps(run: Run, state: TrainState, preemption: Preemption) -> TrainState:
    """All steps that are left, or as many as until SIGTERM; saves at the end in either case."""
    config = run.config
    step_function = jit_train_step(config, run.architecture, run.mesh, run.steps)
    clock = Clock(run)
    pending: Pending | None = None
    for step in range(run.first_step + 1, run.steps + 1):
        clock.waiting()
        host_batch = next(run.batches)
        indices = host_batch.pop("indices")
        clock.running()
        with jax.profiler.StepTraceAnnotation("train", step_num=step):
            state, metrics = step_function(state, global_batch(run.mesh, host_batch))
        if pending is not None:
            _report_step(run, state, pending, clock)
        pending = (step, metrics, indices)
        evaluate = config.evaluation.every_steps and step % config.evaluation.every_steps == 0
        stop = preemption.reached(step)
        save = run.checkpoints.due(step)
        if evaluate or save or stop or step == run.steps:
            # Rows come before the checkpoint that vouches for them: what a resume drops is what it
            # redoes.
            _report_step(run, state, pending, clock)
            pending = None
            clock.pause()
            if evaluate and step < run.steps:
                evaluate_state(run, state, step)
            if save or stop or step == run.steps:
                run.checkpoints.save(state, run.identity(step), wait=stop or step == run.steps)
            clock.resume()
        if stop and step < run.steps:
            run.progress.say(f"SIGTERM: saved step {step:,}; the same command goes on from there")
            break
    run.progress.finish()
    return state


class Clock:
    """Where the time of a run goes, without evaluations and checkpoints.

    A step's time runs from the end of the step before it to its own end, as seen by the host; the
    share in which the host waited for data is kept apart.
    """

    def __init__(self, run: Run):
        self.seconds = run.log.last_seconds  # of training, over all the resumed parts
        self.wait_seconds = 0.0  # for data, since the last logged row
        self.logged_seconds = self.seconds
        self.logged_step = run.first_step
        self.started_step = run.first_step
        self.compiled = False
        self.rate_start = 0.0  # seconds at the end of the first step, which compiles
        self._mark = time.perf_counter()
        self._wait_from = 0.0

    def waiting(self) -> None:
        self._wait_from = time.perf_counter()

    def running(self) -> None:
        self.wait_seconds += time.perf_counter() - self._wait_from

    def tick(self) -> None:
        """Adds the time since the last tick to the run."""
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now

    pause = tick

    def resume(self) -> None:
        self._mark = time.perf_counter()


def _report_step(run: Run, state: TrainState, pending: Pending, clock: Clock) -> None:
    """Reads the metrics of a step (and so waits for its end), and writes what is due."""
    step, metrics, indices = pending
    loss = float(metrics["loss"])
    clock.tick()
    if bool(metrics["failed"]):
        _stop_not_finite(run, state, step, metrics, indices)
    if not clock.compiled:  # the first step compiles: rates begin after it
        clock.compiled = True
        compile_seconds = clock.seconds - clock.logged_seconds
        run.progress.say(f"first step, with compilation: {compile_seconds:.1f} s")
        rate_seconds, rate_steps = compile_seconds, 1
        clock.started_step, clock.rate_start = step, clock.seconds
        clock.logged_seconds, clock.logged_step, clock.wait_seconds = clock.seconds, step, 0.0
    else:
        rate_seconds, rate_steps = clock.seconds - clock.logged_seconds, step - clock.logged_step
    if step > clock.started_step:
        per_step = (clock.seconds - clock.rate_start) / (step - clock.started_step)
        rate = run.config.batch_size / per_step
        run.progress.show(step, loss, rate, per_step * (run.steps - step))
    if step % run.config.log_every_steps == 0 or step in (1, run.steps):
        samples_per_second = run.config.batch_size * rate_steps / max(rate_seconds, 1e-9)
        peak = peak_flops(jax.devices()[0].device_kind)
        flops = step_flops(run.architecture, run.config.batch_size)
        per_second = flops * rate_steps / max(rate_seconds, 1e-9)
        run.log.log_metrics(
            {
                "step": step,
                "samples_seen": step * run.config.batch_size,
                "loss": loss,
                "logit_scale": float(metrics["logit_scale"]),
                "learning_rate": float(metrics["learning_rate"]),
                "grad_norm": float(metrics["grad_norm"]),
                "samples_per_second": samples_per_second,
                "samples_per_second_per_device": samples_per_second / run.mesh.size,
                "step_seconds": rate_seconds / rate_steps,
                "data_wait_fraction": min(1.0, clock.wait_seconds / max(rate_seconds, 1e-9)),
                "model_flops_per_second": per_second,
                "model_flops_utilization": per_second / peak / run.mesh.size if peak else None,
                "bad_records": len(run.batches.bad_records),
                "seconds": clock.seconds,
            }
        )
        clock.logged_seconds, clock.logged_step, clock.wait_seconds = clock.seconds, step, 0.0


def _stop_not_finite(
    run: Run,
    state: TrainState,
    step: int,
    metrics: dict[str, jax.Array],
    indices: np.ndarray,
) -> None:
    """Saves the last good state, writes down the batch, and raises `UserError`."""
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


def task_data(config: TrainConfig) -> TaskData:
    """What the evaluations of a run read; columns and captions are named as in its own data."""
    evaluation, data = config.evaluation, config.data
    return TaskData(
        path=evaluation.path,
        format=evaluation.format,
        image_column=data.image_column,
        caption_column=data.caption_column,
        caption_template=data.caption_template,
        label_key=evaluation.label_key,
        classnames=evaluation.classnames,
        templates=evaluation.templates,
        batch_size=evaluation.batch_size,
    )


def evaluate_state(run: Run, state: TrainState, step: int) -> list[dict[str, Any]]:
    """Runs the configured tasks on the state's parameters and writes their rows."""
    cutting = run.tokenizer.with_truncation(True)  # captions may be long
    clip = Clip(run.architecture, state.eval_params, cutting, run.mesh)
    embedders = Embedders(clip.encode_image, clip.encode_text, clip.transform)
    data = task_data(run.config)
    rows = []
    for task in run.config.evaluation.tasks:
        rows += [{"step": step, **row} for row in run_task(task, embedders, data)]
    run.log.log_evaluations(rows)
    return rows


def _finish(run: Run, state: TrainState) -> Clip:
    """Export and final evaluation; each is made only where it is missing."""
    params = state.eval_params
    clip = Clip(run.architecture, params, run.tokenizer, run.mesh)
    export = run.workdir / "model"
    if exported_step(export) != run.steps:
        on_host = multihost_utils.process_allgather(params, tiled=True)
        if jax.process_index() == 0:
            write_bundle(export, run.architecture, on_host, run.tokenizer, step=run.steps)
    is_evaluated = np.asarray(run.log.has_evaluation(run.steps))
    if not multihost_utils.broadcast_one_to_all(is_evaluated):  # only process 0 has the files
        evaluate_state(run, state, run.steps)
    bad = run.batches.bad_records
    if bad:
        logging.warning("%d records could not be decoded and were left out", len(bad))
    return clip
