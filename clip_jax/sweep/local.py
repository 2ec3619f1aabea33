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
from clip_jax.training.log.metrics import format_seconds

POLL_SECONDS = 0.1
GRACE_SECONDS = 120.0  # for a trainer to save after SIGTERM, before it is killed
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


@dataclass
class Child:
    """One running trainer."""

    run: Run
    process: subprocess.Popen[bytes]
    started: float
    gpu: str | None

    def kill(self) -> None:
        """Kills the trainer and its data workers."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@dataclass
class Scheduler:
    """Keeps `jobs` trainers running until every run has ended or a signal stops it."""

    commands: Mapping[str, Sequence[str]]  # name of an unfinished run -> command line
    trainer_flags: Sequence[str]
    jobs: int
    gpus: Sequence[str]
    inherited_lock: int  # a file descriptor that the children keep open
    children: list[Child] = field(default_factory=list)
    failures: list[Run] = field(default_factory=list)
    signals: list[int] = field(default_factory=list)  # received signals, in order

    def run(self, runs: Sequence[Run]) -> tuple[list[Run], int | None]:
        """Runs all unfinished; returns the failed ones and the signal that stopped the sweep."""
        handled = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
            handled.append(signal.SIGHUP)
        before = {
            number: signal.signal(number, lambda number, _: self.signals.append(number))
            for number in handled
        }
        waiting = [run for run in runs if run.name in self.commands]
        try:
            self._run_all(waiting, len(runs))
        finally:
            for child in self.children:  # some are left only after an internal error
                child.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self.failures, self.signals[0] if self.signals else None

    def _run_all(self, waiting: list[Run], total: int) -> None:
        begun, kill_at = time.monotonic(), None
        done = before = total - len(waiting)
        while self.children or (waiting and not self.signals):
            while waiting and not self.signals and len(self.children) < self.jobs:
                self._start(waiting.pop(0))
            for child in [child for child in self.children if child.process.poll() is not None]:
                outcome = self._ended(child)
                done += outcome == "finished"
                parts = [f"{done} of {total} done"]
                if self.failures:
                    parts.append(f"{len(self.failures)} failed")
                if self.children and not self.signals:
                    seconds = (time.monotonic() - begun) / (done - before + len(self.failures))
                    eta = format_seconds(seconds * (len(waiting) + len(self.children)))
                    parts.append(f"{len(self.children)} running, ETA {eta}")
                print(f"{outcome} {child.run.name}\n[{', '.join(parts)}]", flush=True)
            if self.signals and kill_at is None:
                kill_at = time.monotonic() + GRACE_SECONDS
                count = len(self.children)
                print(f"stopping: {count} runs save and exit; again to kill them", flush=True)
                for child in self.children:
                    child.process.terminate()  # a trainer saves on SIGTERM
            if kill_at and (len(self.signals) > 1 or time.monotonic() > kill_at):
                for child in self.children:
                    child.kill()
            time.sleep(POLL_SECONDS)

    def _start(self, run: Run) -> None:
        Path(run.workdir).mkdir(parents=True, exist_ok=True)
        run.write_record("started", self.trainer_flags)
        used = {child.gpu for child in self.children}
        gpu = next((gpu for gpu in self.gpus if gpu not in used), None)
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})
        command = list(self.commands[run.name])
        with run.log.open("ab") as log:
            log.write(f"$ {shlex.join(command)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                pass_fds=(self.inherited_lock,),
                # In a session of its own the child does not get Ctrl-C; the launcher forwards it.
                start_new_session=True,
                preexec_fn=signal_when_parent_dies(),
            )
        self.children.append(Child(run, process, time.monotonic(), gpu))
        print(f"started {run.name}", flush=True)

    def _ended(self, child: Child) -> str:
        """Records how a run ended; returns it in words."""
        self.children.remove(child)
        code, state = child.process.returncode, "failed"
        # A stopped trainer saves and exits 0 too; only the final export proves that it is done.
        if code == 0 and is_exported(Path(child.run.workdir)):
            state = "finished"
        elif self.signals:
            state = "started"
        else:
            self.failures.append(child.run)
        seconds = round(time.monotonic() - child.started, 1)
        child.run.write_record(state, self.trainer_flags, exit_code=code, seconds=seconds)
        why = f"failed (exit code {code}{'' if code else ', no final export'})"
        return {"started": "stopped", "failed": why}.get(state, state)


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


def last_lines(path: Path, count: int = 10) -> str:
    """Returns the last lines of a log, indented; reads at most the last 64 KiB."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        lines = file.read().decode(errors="replace").splitlines()[-count:]
    return "\n".join(f"  {line}" for line in lines)
