"""Runs the sweep that a config file exports: one trainer a setting, then one table and one plot.

    python -m clip_jax.sweep --config=configs/X.py --workdir=DIR [--jobs=N] [-- trainer flags]

The config file's `sweep()` returns a list of override dicts (helpers: clip_jax.sweep). Run the
same command again to retry what failed and go on with what was stopped; finished runs are skipped.
"""

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from clip_jax.arguments import with_home
from clip_jax.errors import UserError
from clip_jax.sweep import local
from clip_jax.sweep.plan import Run, load_runs
from clip_jax.sweep.table import write_report

SLURM_SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "slurm.sh"


class Parser(argparse.ArgumentParser):
    """Argument parser that raises `UserError`, so that errors take one line."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message}; --help lists what is accepted")


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line; arguments after `--` go to every trainer."""
    parser = Parser(
        prog="python -m clip_jax.sweep",
        usage="python -m clip_jax.sweep --config=FILE --workdir=DIR [options] [-- trainer flags]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, help="config file that exports sweep()")
    parser.add_argument("--workdir", required=True, help="directory of the sweep; one below a run")
    parser.add_argument(
        "--mode",
        default="local",
        choices=("local", "print", "slurm", "table"),
        help="local: run here; print: the shell commands; slurm: write an array script; "
        "table: only the table and the plot of what is there (default: local)",
    )
    parser.add_argument("--jobs", type=int, help="runs at a time (default: 1, or one a GPU)")
    parser.add_argument(
        "--gpus", help="local: GPU numbers such as 0,1,2,3; each run gets one of its own"
    )
    parser.add_argument(
        "--metric",
        action="append",
        help="what to plot, such as retrieval/image_to_text_recall_at_10 or loss; may be repeated "
        "(default: the loss and the first metric of each task)",
    )
    parser.add_argument("--trainer", help=argparse.SUPPRESS)  # the tests put a fake one here
    own, extra = list(argv), []
    if "--" in own:
        own, extra = own[: own.index("--")], own[own.index("--") + 1 :]
    options = parser.parse_args(own)
    options.config = with_home(options.config, "--config")
    options.workdir = with_home(options.workdir, "--workdir")
    options.trainer_flags = extra
    options.gpus = options.gpus.split(",") if options.gpus else []
    if options.jobs is None:
        options.jobs = len(options.gpus) or 1
    if options.jobs < 1:
        raise UserError(f"--jobs={options.jobs}: must be 1 or more")
    if options.gpus and options.jobs > len(options.gpus):
        raise UserError(f"--jobs={options.jobs}: more than the {len(options.gpus)} of --gpus")
    return options


def check_trainer_flags(runs: Sequence[Run], trainer_flags: Sequence[str]) -> None:
    """Rejects flags that would silently override the swept values or the runs' directories."""
    taken = {"config", "workdir"} | {f"config.{key}" for run in runs for key in run.overrides}
    for flag in trainer_flags:
        if flag.startswith("-") and (name := flag.lstrip("-").partition("=")[0]) in taken:
            raise UserError(f"{flag}: the sweep itself sets --{name}; leave it out after --")


def trainer_command(options: argparse.Namespace, python: str) -> list[str]:
    """Returns the trainer's command without its flags."""
    if options.trainer:
        return shlex.split(options.trainer)
    return [python, "-m", "clip_jax.train"]


def trainer_arguments(options: argparse.Namespace, run: Run) -> list[str]:
    """Returns the trainer's flags for one run."""
    return [f"--config={options.config}", *run.flags(), *options.trainer_flags]


def print_commands(options: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Prints one shell command per run, ready for `| bash` or another machine."""
    for run in runs:
        if run.is_finished(options.trainer_flags):
            print(f"# finished: {run.name!r}")
        else:
            command = trainer_command(options, "python") + trainer_arguments(options, run)
            print(shlex.join(command))


def write_slurm_array(options: argparse.Namespace, runs: Sequence[Run]) -> None:
    """Writes DIR/sweep.sbatch, one array task per unfinished run; prints how to submit it.

    The tasks call slurm.sh, whose #SBATCH lines are copied, so that only slurm.sh deals with
    signals, requeueing and several nodes. The script contains the settings, so that editing the
    config file while the array waits changes nothing.
    """
    pending = [run for run in runs if not run.is_finished(options.trainer_flags)]
    if not pending:
        print(f"all {len(runs)} runs are finished; --mode=table shows them")
        return
    if not SLURM_SCRIPT.is_file():
        raise UserError(
            f"--mode=slurm: {SLURM_SCRIPT} is missing; run it in a clone of the repository"
        )
    directives = [
        line for line in SLURM_SCRIPT.read_text().splitlines() if line.startswith("#SBATCH")
    ]
    cases = [
        f"  {index}) set -- {shlex.join(trainer_arguments(options, run))} ;;"
        for index, run in enumerate(pending)
    ]
    at_a_time = f"%{options.jobs}" if options.jobs > 1 else ""
    lines = [
        "#!/usr/bin/env bash",
        *directives,
        f"#SBATCH --array=0-{len(pending) - 1}{at_a_time}",
        "set -euo pipefail",
        'case "$SLURM_ARRAY_TASK_ID" in',
        *cases,
        '  *) echo "error: SLURM_ARRAY_TASK_ID=$SLURM_ARRAY_TASK_ID has no run" >&2; exit 2 ;;',
        "esac",
        f'exec bash {shlex.quote(str(SLURM_SCRIPT))} "$@"',
    ]
    script = Path(options.workdir) / "sweep.sbatch"
    script.write_text("\n".join(lines) + "\n")
    print(f"sbatch {shlex.quote(str(script))}")


def run_local(options: argparse.Namespace, runs: Sequence[Run], lock: int) -> int:
    """Runs unfinished runs; returns exit status 0, 1 after a failure, or 128 + signal number."""
    command = trainer_command(options, sys.executable)
    if shutil.which(command[0]) is None:
        raise UserError(f"--trainer={options.trainer}: no such program: {command[0]}")
    pending = [run for run in runs if not run.is_finished(options.trainer_flags)]
    scheduler = local.Scheduler(
        commands={run.name: command + trainer_arguments(options, run) for run in pending},
        trainer_flags=options.trainer_flags,
        jobs=options.jobs,
        gpus=options.gpus,
        inherited_lock=lock,
        skipped=len(runs) - len(pending),
    )
    failures, signal_number = scheduler.run(pending)
    for run in failures:
        print(f"\nfailed: {run.name}, its log {scheduler.log_path(run)} ends with:")
        print(local.last_lines(scheduler.log_path(run)))
    if signal_number:
        print("\nstopped; the same command goes on from here")
        return 128 + signal_number
    return 1 if failures else 0


@contextlib.contextmanager
def sweep_lock(workdir: str) -> Iterator[int]:
    """Creates the directory and locks it against a second launcher; yields the lock's descriptor.

    Every trainer inherits the descriptor, so the lock holds until the last of them is gone. No run
    is ever written by two trainers, even if the launcher was killed.
    """
    if "://" in workdir:
        raise UserError(f"--workdir={workdir}: must be a local directory in this mode")
    try:
        Path(workdir).mkdir(parents=True, exist_ok=True)
        lock = os.open(Path(workdir) / ".sweep.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(f"--workdir={workdir}: not a directory to write to: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"--workdir={workdir}: another sweep runs here, or one of its runs is still ending"
        ) from None
    try:
        yield lock
    finally:
        os.close(lock)


def execute(argv: Sequence[str]) -> int:
    """Runs the command line; returns the exit status."""
    options = parse_arguments(argv)
    runs = load_runs(options.config, options.workdir)
    check_trainer_flags(runs, options.trainer_flags)
    if options.mode == "print":
        print_commands(options, runs)
        return 0
    if options.mode == "table":
        if not Path(options.workdir).is_dir():
            raise UserError(f"--workdir={options.workdir}: no such directory; run the sweep first")
        write_report(runs, Path(options.workdir), options.metric)
        return 0
    with sweep_lock(options.workdir) as lock:
        if options.mode == "slurm":
            write_slurm_array(options, runs)
            return 0
        status = run_local(options, runs, lock)
        if status < 128:
            print()
            write_report(runs, Path(options.workdir), options.metric)
        return status


def main() -> None:
    """Runs the program; a `UserError` becomes one line and exit status 2."""
    try:
        sys.exit(execute(sys.argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
