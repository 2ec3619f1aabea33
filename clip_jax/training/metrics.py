"""What a run writes about itself: JSON lines, TensorBoard, and the line that a person watches."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The objects of a JSON-lines file; a last line cut short by a kill is left out."""
    rows: list[Row] = []
    if not path.exists():
        return rows
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break  # only the last line can be incomplete, and nothing after it is worth having
    return rows


class JsonLines:
    """A JSON-lines file with a `step` in each row, appended to and rewound to a step on resume."""

    def __init__(self, path: Path, resume_step: int):
        self.path = path
        kept = [row for row in read_rows(path) if row["step"] <= resume_step]
        aside = path.with_suffix(".tmp")
        aside.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        os.replace(aside, path)
        self.rows = kept
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)

    def append(self, row: Row) -> None:
        """Writes one row, at once."""
        self.extend([row])

    def extend(self, rows: list[Row]) -> None:
        """Writes rows that belong together in one go, so that a kill leaves all or none of them."""
        self.rows.extend(rows)
        self._file.write("".join(json.dumps(row) + "\n" for row in rows))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _summary_writer() -> type:
    """tensorboardX's class, which would import PyTorch where that is installed: two seconds, for
    tensors that we do not have."""
    if "torch" in sys.modules:
        from tensorboardX import SummaryWriter

        return SummaryWriter
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it then fails
    try:
        from tensorboardX import SummaryWriter
    finally:
        del sys.modules["torch"]
    return SummaryWriter


class RunLog:
    """metrics.jsonl, evaluation.jsonl and TensorBoard events of a run; silent off process 0."""

    def __init__(self, workdir: Path, resume_step: int, enabled: bool):
        self.enabled = enabled
        self.last_seconds = 0.0
        if not enabled:
            return
        self.metrics = JsonLines(workdir / "metrics.jsonl", resume_step)
        self.evaluations = JsonLines(workdir / "evaluation.jsonl", resume_step)
        if self.metrics.rows:
            self.last_seconds = float(self.metrics.rows[-1]["seconds"])
        self._board = _summary_writer()(
            str(workdir / "tensorboard"), purge_step=resume_step + 1, flush_secs=30
        )

    def log_metrics(self, row: Row) -> None:
        """One logged step."""
        if self.enabled:
            self.metrics.append(row)
            self._to_board("train", row)

    def log_evaluations(self, rows: list[Row]) -> None:
        """The evaluations of one step: step, task, dataset, and metrics by name in each row."""
        if self.enabled:
            self.evaluations.extend(rows)
            for row in rows:
                self._to_board(f"{row['task']}/{row['dataset']}", row)

    def has_evaluation(self, step: int) -> bool:
        """Whether step was evaluated already, by this run or the one it resumes."""
        return self.enabled and any(row["step"] == step for row in self.evaluations.rows)

    def _to_board(self, group: str, row: Row) -> None:
        for name, value in row.items():
            if isinstance(value, int | float) and name not in ("step", "failed"):
                self._board.add_scalar(f"{group}/{name}", value, row["step"])

    def close(self) -> None:
        if self.enabled:
            self.metrics.close()
            self.evaluations.close()
            self._board.close()


def format_seconds(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A line that says where the run is: rewritten on a terminal, every few seconds in a log
    file."""

    def __init__(self, total: int, enabled: bool, stream: TextIO | None = None):
        self._total = total
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._shown = 0.0

    def show(self, step: int, loss: float, samples_per_second: float, eta_seconds: float) -> None:
        """Step, loss, rate, and the time that is left."""
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
        """A line of its own above the progress line."""
        if self._enabled:
            self._stream.write(("\r\033[K" if self._terminal else "") + message + "\n")
            self._stream.flush()

    def finish(self) -> None:
        """Ends the line."""
        if self._enabled and self._terminal and self._shown:
            self._stream.write("\n")
