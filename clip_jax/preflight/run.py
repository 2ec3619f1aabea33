"""Pre-flight of a run: compilation of its programs, and the report."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator

import jax

from clip_jax.errors import first_line
from clip_jax.preflight import compile as compiling
from clip_jax.preflight.advice import advise
from clip_jax.preflight.compile import Run, TooLargeError
from clip_jax.preflight.report import Report, add_evaluation, add_train_step, describe, too_large

LINE_SECONDS = 15  # between progress lines if none can be overwritten, as in a log file


def preflight(run: Run, evaluation: bool = True) -> Report:
    """Compiles the train step and, with `evaluation`, the evaluation step.

    The report has the keys of `report.describe`; if the run does not fit, `reason` says why and
    `advice` what to change.
    """
    report = describe(run)
    step = "the train step"
    try:
        with _waiting(f"compiling {step} for {run.target.topology}"):
            report = add_train_step(report, run, compiling.compile_train_step(run))
        if evaluation and report["fits"]:
            step = "the evaluation step"
            with _waiting(f"compiling {step}"):
                report = add_evaluation(report, run, compiling.compile_evaluation(run))
    except (TooLargeError, jax.errors.JaxRuntimeError) as error:
        reason = f"the compiler failed at {step}: {first_line(error)}"
        found: Report = {"peak_bytes_per_device": None, "largest_allocations": None}
        if isinstance(error, TooLargeError):
            reason = too_large(step, error.needed_bytes, run.target.hbm_bytes)
            found["peak_bytes_per_device"] = error.needed_bytes
            found["largest_allocations"] = error.allocations
        if step == "the evaluation step":
            batch_size = run.config.evaluation_batch_size
            found = {"evaluation": {"fits": False, "batch_size": batch_size, **found}}
        report |= {"fits": False, "reason": reason, **found}
    if not report["fits"]:
        report["advice"] = advise(run, report)
    return report


@contextlib.contextmanager
def _waiting(what: str) -> Iterator[None]:
    """Shows `what` and the elapsed time on stderr until the block ends."""
    overwrites, begun, done = sys.stderr.isatty(), time.perf_counter(), threading.Event()

    def tick() -> None:
        ended = False
        while True:
            text = f"{what} … {time.perf_counter() - begun:.0f} s"
            end = "" if overwrites and not ended else "\n"
            print(f"\r{text}" if overwrites else text, end=end, file=sys.stderr, flush=True)
            if ended:
                break
            ended = done.wait(1 if overwrites else LINE_SECONDS)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
