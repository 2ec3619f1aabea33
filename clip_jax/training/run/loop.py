"""Training run, from a configuration to an exported model; resumes automatically.

The host waits for the device only where it must: step n + 1 is dispatched before the metrics of
step n are read, and checkpoints are written asynchronously.
"""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

from clip_jax.adaptation.folder import Adaptation, write_adaptation
from clip_jax.adaptation.hooks import ADAPTER
from clip_jax.adapted import OF_RUN, AdaptedClip, named_base
from clip_jax.clip import Clip
from clip_jax.evaluation.embeddings import Embedders
from clip_jax.evaluation.tasks import check_task, run_task
from clip_jax.files.disk import writing
from clip_jax.hosts.agreement import check_same, check_shared, from_first, wait_for_all
from clip_jax.sharding import check_batch, global_batch, make_mesh
from clip_jax.text.tokenizer import Tokenizer
from clip_jax.training import config as configs
from clip_jax.training.config import EvaluationConfig, TrainConfig
from clip_jax.training.log.profile import CompileWatch, Profiling, Tracer, write_hlo
from clip_jax.training.run.checkpoint import GO_ON
from clip_jax.training.run.clock import Clock
from clip_jax.training.run.data import open_training_data
from clip_jax.training.run.initial import with_model_of_source
from clip_jax.training.run.opening import Run, open_run
from clip_jax.training.run.preemption import Preemption
from clip_jax.training.run.reporting import StepReporter
from clip_jax.training.run.workdir import enable_compilation_cache, make_workdir, only_trainer
from clip_jax.training.step.adapter import adapter_method
from clip_jax.training.step.compiled import jit_train_step
from clip_jax.training.step.state import TrainState
from clip_jax.weights.layouts.bundle import exported_step, is_whole, write_bundle


def train(
    config: TrainConfig,
    workdir: Path,
    profiling: Profiling = Profiling(),  # noqa: B008 (frozen)
) -> Clip | None:
    """Trains or resumes the run in `workdir`, and exports the model to `workdir`/model.

    Returns the trained `Clip`, or None if SIGTERM ended the run early; it is saved then, and the
    same call resumes it. All processes of a job make the same call, inside
    `clip_jax.hosts.join.joined`. Raises `UserError` for mistakes that the user can correct.
    """
    config = with_model_of_source(config)
    values = configs.flat_values(configs.to_dict(config))
    check_same(values, "config.", "start every process with the same configuration")
    for number, each in enumerate(config.evaluations):
        check_task(each.task, each.task_data(), f"config.evaluations[{number}]")
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    check_batch(mesh, config.batch_size, "config.batch_size", config.optimizer.microbatches)
    workdir = make_workdir(workdir)
    with writing(workdir, GO_ON), Preemption() as preemption, only_trainer(workdir):
        check_shared(workdir, "--workdir")
        enable_compilation_cache(workdir)
        source = open_training_data(config)
        with jax.set_mesh(mesh), contextlib.ExitStack() as closing:
            run, state = open_run(config, workdir, source, mesh)
            # The last is closed first. If one fails, on a full disk, the others still are closed.
            for part in (run.log, run.checkpoints, run.batches):
                closing.callback(part.close)
            if run.first_step < run.steps:
                state = _train_steps(run, state, preemption, profiling)
            elif _is_exported(run):
                run.progress.say(f"{workdir}: already trained to step {run.steps:,}")
            if int(state.step) < run.steps:
                return None
            return _finish(run, state)


def _train_steps(
    run: Run, state: TrainState, preemption: Preemption, profiling: Profiling
) -> TrainState:
    """Runs the remaining steps, or those until SIGTERM; saves at the end in either case."""
    config, first = run.config, run.first_step + 1
    step_function = jit_train_step(config, run.architecture, run.mesh, run.steps)
    clock = Clock(run.log.last_seconds, run.first_step)
    with (
        CompileWatch("train_step") as compiles,
        Tracer(run.workdir / "profile", profiling.steps, first, run.steps) as tracer,
    ):
        reporter = StepReporter(run, clock, compiles)
        for step in range(first, run.steps + 1):
            clock.waiting()
            host_batch = next(run.batches)
            indices = host_batch.pop("indices")
            clock.running()
            batch = global_batch(run.mesh, host_batch)
            if step == first:
                compiled = step_function.lower(state, batch).compile()  # jax keeps it for the call
                if profiling.dump_hlo:
                    write_hlo(compiled, run.workdir / "hlo")
                wait_for_all("compiled")  # connecting the devices may time out
            if tracer.acts_before(step):
                clock.pause()
                tracer.act(step, state)
                clock.resume()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = step_function(state, batch)
            compiles.called(step)
            reporter.report(state)
            reporter.dispatched(step, metrics, indices)
            due = [x for x in config.evaluations if x.every_steps and step % x.every_steps == 0]
            stop = preemption.reached(step)
            save = run.checkpoints.due(step)
            if due or save or stop or step == run.steps:
                # Rows are written before their checkpoint, so that a resumed run repeats exactly
                # the steps whose rows it drops.
                reporter.report(state)
                clock.pause()
                if due and step < run.steps:
                    evaluate_state(run, state, step, due)
                if save or stop or step == run.steps:
                    run.checkpoints.save(state, run.identity(step), wait=stop or step == run.steps)
                clock.resume()
            if stop and step < run.steps:
                run.progress.say(
                    f"SIGTERM: saved step {step:,}; the same command goes on from there"
                )
                break
    run.progress.finish()
    return state


def evaluate_state(
    run: Run, state: TrainState, step: int, evaluations: Sequence[EvaluationConfig]
) -> list[dict[str, Any]]:
    """Runs evaluations of the state's parameters and writes their rows."""
    clip = _clip(run, state, run.tokenizer.with_truncation(True))  # captions may be long
    embedders = Embedders(clip.encode_image, clip.encode_text, clip.transform, clip.logit_scale)
    rows = []
    for each in evaluations:
        found = run_task(each.task, embedders, each.task_data())
        rows += [{"step": step, **row} for row in found]
    run.log.log_evaluations(rows)
    return rows


def _clip(run: Run, state: TrainState, tokenizer: Tokenizer) -> Clip:
    """Returns the model of the state, with the adapter if there is one."""
    method = adapter_method(run.config.adapter)
    if method is None:
        return Clip(run.architecture, state.eval_params, tokenizer, run.mesh)
    adaptation = Adaptation(
        multihost_utils.process_allgather(state.eval_params, tiled=True),
        method.scale,
        str(run.config.adapter.method),
        named_base(run.config.init.source),
        run.base_hash,
    )
    base = Clip(run.architecture, state.base, tokenizer, run.mesh)
    return AdaptedClip(base, adaptation, run.base_hash)


def _is_exported(run: Run) -> bool:
    """Whether process 0 finds a complete export of the last step; every process must call it."""
    export = run.workdir / "model"
    return from_first(exported_step(export) == run.steps and is_whole(export))


def _finish(run: Run, state: TrainState) -> Clip:
    """Exports the model and runs the final evaluation, unless they exist already.

    An adapter is written too, alone if it cannot be merged into the model.
    """
    clip = _clip(run, state, run.tokenizer)
    if isinstance(clip, AdaptedClip) and jax.process_index() == 0:
        write_adaptation(run.workdir / OF_RUN, clip.adaptation)
    if ADAPTER not in clip.params and not _is_exported(run):
        _export(run, clip.params)
    if not from_first(run.log.has_evaluation(run.steps)):  # only process 0 has the files
        evaluate_state(run, state, run.steps, run.config.evaluations)
    for kind, count in run.batches.dropped.most_common():
        logging.warning("%d records were left out: %s", count, kind)
    return clip


def _export(run: Run, params: Any) -> None:
    export = run.workdir / "model"
    on_host = multihost_utils.process_allgather(params, tiled=True)
    if jax.process_index() == 0:
        with writing(export, GO_ON):
            write_bundle(
                export, run.architecture, on_host, run.tokenizer, run.steps, replace_damaged=True
            )
