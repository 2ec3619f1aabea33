"""Runs the sweep that a config file exports: one trainer a setting, then one table and one plot.

    python -m clip_jax.sweep --config=configs/X.py --workdir=DIR [--jobs=N] [-- trainer flags]

The config file's `sweep()` returns a list of override dicts (helpers: clip_jax.sweep). Run the
same command again to retry what failed and go on with what was stopped; finished runs are skipped.
Arguments after `--` go to every trainer.
"""

import contextlib
import fcntl
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from clip_jax import command_line
from clip_jax.arguments import with_home
from clip_jax.errors import UserError
from clip_jax.sweep.local import Scheduler, last_lines
from clip_jax.sweep.plan import Run, load_runs
from clip_jax.sweep.table import (
    COUNTS,
    defaults,
    read_results,
    resolve_metric,
    text_table,
    write_csv,
)

_CONFIG = flags.DEFINE_string("config", None, "Configuration file that exports sweep().")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep; each run has one below it.")
_MODE = flags.DEFINE_enum(
    "mode",
    "local",
    ["local", "print", "slurm", "table"],
    "local: run here; print: the shell commands; slurm: write an array script; table: only the "
    "table and the plot of what is there.",
)
_JOBS = flags.DEFINE_integer(
    "jobs", None, "Runs at a time; by default 1, or one a GPU.", lower_bound=1
)
_GPUS = flags.DEFINE_list(
    "gpus", [], "local: GPU numbers such as 0,1,2,3; each run gets one of its own."
)
_METRIC = flags.DEFINE_multi_string(
    "metric",
    None,
    "What to plot, such as retrieval/image_to_text_recall_at_10 or loss; may be repeated. By "
    "default the loss and the first metric of each task.",
)
_TRAINER = flags.DEFINE_string("trainer", None, "Command in place of python -m clip_jax.train.")

SLURM_SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "slurm.sh"


def main(trainer_flags: Sequence[str]) -> int:
    """Runs the sweep; returns exit status 0, 1 after a failure, or 128 + signal number."""
    for name, value in (("config", _CONFIG.value), ("workdir", _WORKDIR.value)):
        if not value:
            raise UserError(f"--{name}: is missing; --help lists what is accepted")
    jobs = _JOBS.value or len(_GPUS.value) or 1
    if _GPUS.value and jobs > len(_GPUS.value):
        raise UserError(f"--jobs={jobs}: more than the {len(_GPUS.value)} of --gpus")
    config, workdir = with_home(_CONFIG.value, "--config"), with_home(_WORKDIR.value, "--workdir")
    runs = load_runs(config, workdir)
    taken = {"config", "workdir"} | {f"config.{key}" for run in runs for key in run.overrides}
    for flag in trainer_flags:
        if flag.startswith("-") and (name := flag.lstrip("-").partition("=")[0]) in taken:
            raise UserError(f"{flag}: the sweep itself sets --{name}; leave it out after --")
    arguments = {
        run.name: [f"--config={config}", *run.flags(), *trainer_flags]
        for run in runs
        if not run.is_finished(trainer_flags)
    }
    if _MODE.value == "print":
        for run in runs:
            if run.name in arguments:
                print(shlex.join(_trainer("python") + arguments[run.name]))
            else:
                print(f"# finished: {run.name!r}")
        return 0
    folder = Path(workdir)
    if _MODE.value == "table":
        if not folder.is_dir():
            raise UserError(f"--workdir={workdir}: no such directory; run the sweep first")
        write_report(runs, folder, _METRIC.value)
        return 0
    with sweep_lock(workdir) as lock:
        if _MODE.value == "slurm":
            write_slurm_array(folder, list(arguments.values()), jobs)
            return 0
        command = _trainer(sys.executable)
        if shutil.which(command[0]) is None:
            raise UserError(f"--trainer={_TRAINER.value}: no such program: {command[0]}")
        commands = {name: command + more for name, more in arguments.items()}
        scheduler = Scheduler(commands, trainer_flags, jobs, _GPUS.value, lock)
        failures, signal_number = scheduler.run(runs)
        for run in failures:
            print(f"\nfailed: {run.name}, its log {run.log} ends with:\n{last_lines(run.log)}")
        if signal_number:
            print("\nstopped; the same command goes on from here")
            return 128 + signal_number
        print()
        write_report(runs, folder, _METRIC.value)
        return 1 if failures else 0


def _trainer(python: str) -> list[str]:
    """The trainer's command without its flags."""
    return shlex.split(_TRAINER.value) if _TRAINER.value else [python, "-m", "clip_jax.train"]


def write_report(runs: Sequence[Run], workdir: Path, metrics: Sequence[str] | None) -> None:
    """Writes DIR/sweep.csv and DIR/sweep.png, and prints a short table.

    Raises UserError for a metric that no run has, after writing the CSV.
    """
    rows = read_results(runs)
    names = list(dict.fromkeys(name for row in rows for name in row.results))
    csv_file, plot_file = workdir / "sweep.csv", workdir / "sweep.png"
    write_csv(rows, names, csv_file)
    plottable = [name for name in names if name not in COUNTS]
    if not plottable:
        print(f"no run has results yet\ntable: {csv_file}")
        return
    chosen = [resolve_metric(m, plottable) for m in metrics] if metrics else defaults(plottable)
    print(text_table(rows, chosen))
    # Only this needs matplotlib, which takes a second to import.
    from clip_jax.sweep.plot import write_plot

    write_plot(rows, chosen, plot_file, workdir.name)
    print(f"\ntable: {csv_file}\nplot:  {plot_file}")


def write_slurm_array(workdir: Path, arguments: Sequence[Sequence[str]], jobs: int) -> None:
    """Writes DIR/sweep.sbatch, one array task per unfinished run; prints how to submit it.

    The tasks call slurm.sh, whose #SBATCH lines are copied, so that only slurm.sh deals with
    signals, requeueing and several nodes. The script contains the settings, so that editing the
    config file while the array waits changes nothing.
    """
    if not arguments:
        print("all runs are finished; --mode=table shows them")
        return
    if not SLURM_SCRIPT.is_file():
        raise UserError(
            f"--mode=slurm: {SLURM_SCRIPT} is missing; run it in a clone of the repository"
        )
    lines = SLURM_SCRIPT.read_text().splitlines()
    at_a_time = f"%{jobs}" if jobs > 1 else ""
    script = [
        "#!/usr/bin/env bash",
        *(line for line in lines if line.startswith("#SBATCH")),
        f"#SBATCH --array=0-{len(arguments) - 1}{at_a_time}",
        "set -euo pipefail",
        'case "$SLURM_ARRAY_TASK_ID" in',
        *(f"  {index}) set -- {shlex.join(task)} ;;" for index, task in enumerate(arguments)),
        '  *) echo "error: SLURM_ARRAY_TASK_ID=$SLURM_ARRAY_TASK_ID has no run" >&2; exit 2 ;;',
        "esac",
        f'exec bash {shlex.quote(str(SLURM_SCRIPT))} "$@"',
    ]
    path = workdir / "sweep.sbatch"
    path.write_text("\n".join(script) + "\n")
    print(f"sbatch {shlex.quote(str(path))}")


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
        yield lock
    except BlockingIOError:
        raise UserError(
            f"--workdir={workdir}: another sweep runs here, or one of its runs is still ending"
        ) from None
    finally:
        os.close(lock)


if __name__ == "__main__":
    own, extra = sys.argv, list[str]()
    if "--" in own:
        own, extra = own[: own.index("--")], own[own.index("--") + 1 :]
    command_line.run(lambda: main(extra), own)
