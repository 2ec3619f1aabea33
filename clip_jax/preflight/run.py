"""Pre-flight of a run: compilation of its programs, and the report."""

import jax

from clip_jax.preflight import compile as compiling
from clip_jax.preflight.advice import advise
from clip_jax.preflight.compile import Run, TooLargeError
from clip_jax.preflight.progress import waiting
from clip_jax.preflight.report import Report, add_evaluation, add_train_step, describe, gib


def preflight(run: Run, evaluation: bool = True) -> Report:
    """Compiles the train step and, with `evaluation`, the evaluation step.

    The report has the keys of `report.describe`; if the run does not fit, `reason` says why and
    `advice` what to change.
    """
    report = describe(run)
    try:
        with waiting(f"compiling the train step for {run.target.topology}"):
            report = add_train_step(report, run, compiling.compile_train_step(run))
    except (TooLargeError, jax.errors.JaxRuntimeError) as error:
        report |= {"fits": False, "reason": _reason(error, "the train step", run)}
        if isinstance(error, TooLargeError):
            report["peak_bytes_per_device"] = error.needed_bytes
            report["largest_allocations"] = error.allocations
    if evaluation and report["fits"]:
        report = _with_evaluation(report, run)
    if not report["fits"]:
        report["advice"] = advise(run, report)
    return report


def _with_evaluation(report: Report, run: Run) -> Report:
    try:
        with waiting("compiling the evaluation step"):
            return add_evaluation(report, run, compiling.compile_evaluation(run))
    except (TooLargeError, jax.errors.JaxRuntimeError) as error:
        evaluation: Report = {"fits": False, "batch_size": run.config.evaluation_batch_size}
        if isinstance(error, TooLargeError):
            evaluation["peak_bytes_per_device"] = error.needed_bytes
        reason = _reason(error, "the evaluation step", run)
        return report | {"fits": False, "reason": reason, "evaluation": evaluation}


def _reason(error: Exception, step: str, run: Run) -> str:
    """One line on why a program was not compiled."""
    if isinstance(error, TooLargeError):
        return f"{step} needs {gib(error.needed_bytes)} of {gib(run.target.hbm_bytes)} GiB a device"
    first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
    return f"the compiler failed at {step}: {first}"
