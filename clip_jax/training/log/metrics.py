"""Metrics of a run: JSON lines, TensorBoard events, and the progress line."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TextIO

from clip_jax.files.disk import write_text

Row = dict[str, Any]
_FLUSH_SECONDS = 30.0  # between flushes of TensorBoard's file


def read_rows(path: Path) -> list[Row]:
    """Reads the objects of a JSON-lines file, without a last line that a kill cut short."""
    rows: list[Row] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # only the last line can be incomplete
    return rows


class JsonLines:
    """JSON-lines file with a `step` in each row; rewound to a step on resume."""

    def __init__(self, path: Path, resume_step: int):
        self.path = path
        self.rows = [row for row in read_rows(path) if row["step"] <= resume_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in self.rows))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 (closed in close)

    def extend(self, rows: list[Row]) -> None:
        """Writes rows that belong together at once, so that a kill leaves all or none of them.

        Raises OSError, and leaves none, if the disk does not take them all.
        """
        start = self._file.seek(0, os.SEEK_END)
        data = memoryview("".join(json.dumps(row) + "\n" for row in rows).encode())
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(start)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.rows.extend(rows)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Board:
    """TensorBoard events, in a new file for each start of a run.

    This class writes them itself, as tensorboardX uses a thread: a full disk would end the thread,
    and the run would wait for it.
    """

    def __init__(self, folder: Path, resume_step: int):
        self._parts = _tensorboard()
        self._flushed = time.monotonic()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        with self._named():
            self._writer = self._parts.EventsWriter(str(folder / "events"))
            start = self._parts.SessionLog(status=self._parts.SessionLog.START)
            # This event hides later steps that a former start has written.
            self._write(step=resume_step + 1, session_log=start)
            self._writer.flush()

    def add(self, values: dict[str, float], step: int) -> None:
        """Writes scalars, flushed every 30 s; raises OSError if the disk is full."""
        summary = self._parts.Summary(
            value=[
                self._parts.Summary.Value(tag=tag, simple_value=value)
                for tag, value in values.items()
            ]
        )
        with self._named():
            self._write(step=step, summary=summary)
            if time.monotonic() > self._flushed + _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes what is left and closes TensorBoard's file."""
        with self._named():
            self._writer.close()

    def _write(self, **values: Any) -> None:
        self._writer.write_event(self._parts.Event(wall_time=time.time(), **values))

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._folder)) from error


def _tensorboard() -> Any:
    """Imports the needed parts of tensorboardX, without PyTorch.

    tensorboardX imports PyTorch if it is installed, which takes two seconds for nothing.
    """
    has_torch = "torch" in sys.modules
    if not has_torch:
        sys.modules["torch"] = None  # type: ignore[assignment]  # makes its import fail
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
    finally:
        if not has_torch:
            del sys.modules["torch"]
    return SimpleNamespace(
        EventsWriter=EventsWriter, Event=Event, SessionLog=SessionLog, Summary=Summary
    )


class RunLog:
    """metrics.jsonl, evaluation.jsonl and TensorBoard events; writes nothing unless `enabled`."""

    def __init__(self, workdir: Path, resume_step: int, enabled: bool):
        self.enabled = enabled
        self.last_seconds = 0.0
        if not enabled:
            return
        self.metrics = JsonLines(workdir / "metrics.jsonl", resume_step)
        self.evaluations = JsonLines(workdir / "evaluation.jsonl", resume_step)
        if self.metrics.rows:
            self.last_seconds = float(self.metrics.rows[-1]["seconds"])
        self._board = Board(workdir / "tensorboard", resume_step)

    def log_metrics(self, row: Row) -> None:
        """Logs one step."""
        if self.enabled:
            self.metrics.extend([row])
            self._to_board("train", row)

    def log_evaluations(self, rows: list[Row]) -> None:
        """Logs the evaluations of one step: rows of step, task, dataset, and metrics by name."""
        if self.enabled:
            self.evaluations.extend(rows)
            for row in rows:
                self._to_board(f"{row['task']}/{row['dataset']}", row)

    def has_evaluation(self, step: int) -> bool:
        """Whether a step was already evaluated, by this start of the run or an earlier one."""
        return self.enabled and any(row["step"] == step for row in self.evaluations.rows)

    def _to_board(self, group: str, row: Row) -> None:
        values = {
            f"{group}/{name}": float(value)
            for name, value in row.items()
            if isinstance(value, int | float)
            and name not in ("step", "failed")
            and not name.endswith(("_low", "_high"))  # limits of an interval would be charts
        }
        self._board.add(values, row["step"])

    def close(self) -> None:
        """Closes all files of the log."""
        if self.enabled:
            self.metrics.close()
            self.evaluations.close()
            self._board.close()


def format_seconds(seconds: float) -> str:
    """Formats seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """Progress line of a run: rewritten in place on a terminal, every 10 s in a log file."""

    def __init__(self, total: int, enabled: bool, stream: TextIO | None = None):
        self._total = total
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._shown = 0.0

    def show(self, step: int, loss: float, samples_per_second: float, eta_seconds: float) -> None:
        """Shows step, loss, rate and remaining time."""
        now = time.monotonic()
        interval = 0.2 if self._terminal else 10.0
        if not self._enabled or (now - self._shown < interval and step < self._total):
            return
        self._shown = now
        line = (
            f"step {step:,}/{self._total:,} ({100 * step / self._total:3.0f} %)  loss {loss:.3f}  "
            f"{samples_per_second:,.0f} samples/s  ETA {format_seconds(eta_seconds)}"
        )
        self._stream.write(f"\r\033[K{line}" if self._terminal else line + "\n")
        self._stream.flush()

    def say(self, message: str) -> None:
        """Prints a message above the progress line."""
        if self._enabled:
            self._stream.write(("\r\033[K" if self._terminal else "") + message + "\n")
            self._stream.flush()

    def finish(self) -> None:
        """Ends the progress line."""
        if self._enabled and self._terminal and self._shown:
            self._stream.write("\n")
