"""Scheduler that runs trainers as child processes, N at a time."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip_jax.sweep.plan import Run, is_exported

LOG_FILE = "train.log"
POLL_SECONDS = 0.1
PROGRESS_SECONDS = 2.0  # between refreshes of the progress line on a terminal
GRACE_SECONDS = 120.0  # for a trainer to save after SIGTERM, before it is killed
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass
class Child:
    """One running trainer."""

    run: Run
    process: subprocess.Popen[bytes]
    started: float
    gpu: str | None


@dataclass
class Scheduler:
    """Keeps `jobs` trainers running until every run has ended or a signal stops it."""

    commands: Mapping[str, Sequence[str]]  # run name -> command line
    trainer_flags: Sequence[str]
    jobs: int
    gpus: Sequence[str] = ()
    inherited_lock: int | None = None  # a file descriptor that the children keep open
    skipped: int = 0  # runs that had finished before
    children: list[Child] = field(default_factory=list)
    durations: list[float] = field(default_factory=list)  # seconds of the ended runs
    failures: list[Run] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)  # received signals, in order

    def run(self, runs: Sequence[Run]) -> tuple[list[Run], int | None]:
        """Runs all; returns the failed runs and the signal that stopped the sweep, if any."""
        handled = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            handled.append(signal.SIGHUP)
        before = {
            number: signal.signal(number, lambda number, _: self.signals.append(number))
            for number in handled
        }
        try:
            self._run_all(list(runs))
        finally:
            for child in self.children:  # some are left only after an internal error
                kill_group(child.process)
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.failures, self.signals[0] if self.signals else None

    def log_path(self, run: Run) -> Path:
        """Path of the run's output log, to which every attempt appends."""
        return Path(run.workdir) / LOG_FILE

    def _run_all(self, waiting: list[Run]) -> None:
        kill_at = None
        next_progress = 0.0
        while self.children or (waiting and not self.signals):
            while waiting and not self.signals and len(self.children) < self.jobs:
                self._start(waiting.pop(0))
            self._collect(len(waiting))
            if self.signals and kill_at is None:
                kill_at = time.monotonic() + GRACE_SECONDS
                report(f"stopping: {len(self.children)} runs save and exit; again to kill them")
                for child in self.children:
                    child.process.terminate()  # a trainer saves on SIGTERM
            if kill_at and (len(self.signals) > 1 or time.monotonic() > kill_at):
                for child in self.children:
                    kill_group(child.process)
            if sys.stdout.isatty() and time.monotonic() >= next_progress:
                next_progress = time.monotonic() + PROGRESS_SECONDS
                print(f"\r\033[K{self._progress(len(waiting))}", end="", flush=True)
            time.sleep(POLL_SECONDS)

    def _start(self, run: Run) -> None:
        Path(run.workdir).mkdir(parents=True, exist_ok=True)
        run.write_record("started", self.trainer_flags)
        used = {child.gpu for child in self.children}
        gpu = next((gpu for gpu in self.gpus if gpu not in used), None)
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})
        command = list(self.commands[run.name])
        with self.log_path(run).open("ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=() if self.inherited_lock is None else (self.inherited_lock,),
                # In a session of its own the child does not get Ctrl-C; the launcher forwards it.
                start_new_session=True,
                preexec_fn=signal_when_parent_dies(),
            )
        self.children.append(Child(run, process, time.monotonic(), gpu))
        report(f"started {run.name}")

    def _collect(self, waiting: int) -> None:
        for child in [child for child in self.children if child.process.poll() is not None]:
            self.children.remove(child)
            seconds = time.monotonic() - child.started
            exit_code = child.process.returncode
            # A stopped trainer saves and exits 0 too; only the final export proves that it is done.
            if exit_code == 0 and is_exported(Path(child.run.workdir)):
                state = "finished"
            elif self.signals:
                state = "started"
            else:
                state = "failed"
                self.failures.append(child.run)
            child.run.write_record(
                state, self.trainer_flags, exit_code=exit_code, seconds=round(seconds, 1)
            )
            if state != "started":
                self.durations.append(seconds)
            outcome = {"started": "stopped"}.get(state, state)
            if state == "failed":
                outcome += f" (exit code {exit_code}{'' if exit_code else ', no final export'})"
            report(f"{outcome} {child.run.name}\n{self._progress(waiting)}")

    def _progress(self, waiting: int) -> str:
        """Formats progress: `[3 of 6 done, 1 failed, 2 running, ETA 4m10s]`."""
        total = self.skipped + len(self.durations) + len(self.children) + waiting
        done = self.skipped + len(self.durations) - len(self.failures)
        parts = [f"{done} of {total} done"]
        if self.failures:
            parts.append(f"{len(self.failures)} failed")
        if self.children:
            parts.append(f"{len(self.children)} running")
            parts.append(f"ETA {self._eta(waiting)}")
        return f"[{', '.join(parts)}]"

    def _eta(self, waiting: int) -> str:
        if not self.durations:
            return "unknown"
        mean = sum(self.durations) / len(self.durations)
        now = time.monotonic()
        left = [max(0.0, mean - (now - child.started)) for child in self.children]
        return duration_text(max(max(left), (sum(left) + waiting * mean) / self.jobs))


def signal_when_parent_dies() -> Callable[[], None] | None:
    """Returns a `preexec_fn` by which the child gets SIGTERM even if the launcher is killed -9.

    Returns None on systems other than Linux, where the trainers then run on.
    """
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork, after which no lock may be taken
    parent = os.getpid()

    def ask_for_signal() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the launcher died before the call
            os._exit(1)

    return ask_for_signal


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills a trainer and its data workers."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def report(text: str) -> None:
    """Prints a line in place of the progress line."""
    print(f"\r\033[K{text}" if sys.stdout.isatty() else text, flush=True)


def duration_text(seconds: float) -> str:
    """Formats seconds: 42s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def last_lines(path: Path, count: int = 10) -> str:
    """Returns the last lines of a log, indented; reads at most the last 64 KiB."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        lines = file.read().decode(errors="replace").splitlines()[-count:]
    return "\n".join(f"  {line}" for line in lines)
