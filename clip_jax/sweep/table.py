"""Table of a sweep, from the files in its runs' directories."""

import csv
import difflib
import math
import os.path
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.sweep.plan import Run
from clip_jax.training.log.metrics import read_rows

COUNTS = ("step", "samples_seen")
OWN_COLUMNS = ("run", "state", *COUNTS, "loss")
MAX_DEFAULT_METRICS = 4
LOWER_IS_BETTER = ("loss", "rank", "error")


@dataclass(frozen=True)
class Row:
    """One run with its state and results (`loss`, `task/metric`, … to number)."""

    run: Run
    state: str
    results: dict[str, float]

    def has(self, metric: str) -> bool:
        """Whether the run has this metric, as a finite number."""
        return math.isfinite(self.results.get(metric, math.nan))


def read_results(runs: Sequence[Run]) -> list[Row]:
    """Reads every run's last metrics, and its last evaluation of each task and data set.

    A column is named by its task and the part of the data set's name that is not shared:
    `retrieval` on glyphs/test and glyphs/test/seen gives `retrieval` and `retrieval/seen`.
    """
    evaluations = {run.name: last_evaluations(Path(run.workdir)) for run in runs}
    datasets: dict[str, set[str]] = {}
    for task, dataset in (key for of_run in evaluations.values() for key in of_run):
        datasets.setdefault(task, set()).add(f"/{dataset}")
    shared = {task: os.path.commonpath(names) for task, names in datasets.items()}
    rows = []
    for run in runs:
        results: dict[str, float] = {}
        for record in read_rows(Path(run.workdir) / "metrics.jsonl"):
            results |= numbers({name: record.get(name) for name in (*COUNTS, "loss")})
        for (task, dataset), values in evaluations[run.name].items():
            column = os.path.normpath(f"{task}/{os.path.relpath(f'/{dataset}', shared[task])}")
            results |= {f"{column}/{name}": value for name, value in values.items()}
        rows.append(Row(run, run.state(), results))
    return rows


def last_evaluations(directory: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Maps (task, data set) to the metrics of its last evaluation in evaluation.jsonl."""
    latest: dict[tuple[str, str], dict[str, float]] = {}
    for record in read_rows(directory / "evaluation.jsonl"):
        key = (str(record.get("task", "")), str(record.get("dataset", "")))
        latest[key] = {name: v for name, v in numbers(record).items() if name != "step"}
    return latest


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """Returns the numeric values of a record."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def write_csv(rows: Sequence[Row], names: Sequence[str], path: Path) -> None:
    """Writes one row per run: its name, state, swept keys and results."""
    keys = list(dict.fromkeys(key for row in rows for key in row.run.overrides))
    # A swept key may be called `loss`, and a table must not have two columns of one name.
    headers = [f"config.{key}" if key in OWN_COLUMNS else key for key in keys]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "state", *headers, *names])
        for row in rows:
            settings = [row.run.overrides.get(key, "") for key in keys]
            results = [row.results.get(name, "") for name in names]
            writer.writerow([row.run.name, row.state, *settings, *results])


def resolve_metric(asked: str, known: Sequence[str]) -> str:
    """Returns the column that `asked` names: in full, by a unique ending, or without data set."""
    if asked in known:
        return asked
    task, _, metric = asked.rpartition("/")
    found = [name for name in known if name.endswith(f"/{asked}")] or [
        name for name in known if name.startswith(f"{task}/") and name.endswith(f"/{metric}")
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"--metric={asked}: could be any of {', '.join(found)}; give one")
    near = difflib.get_close_matches(asked, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(f"--metric={asked}: no run has it; {hint}the runs have {', '.join(known)}")


def defaults(known: Sequence[str]) -> list[str]:
    """Returns the loss and the first metric of each task, except those on parts of its data."""
    firsts: dict[str, str] = {}
    for name in sorted(known, key=lambda name: name.count("/")):
        group = name.rpartition("/")[0]
        if not any(earlier and group.startswith(f"{earlier}/") for earlier in firsts):
            firsts.setdefault(group, name)
    return list(firsts.values())[:MAX_DEFAULT_METRICS]


def text_table(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """Formats the runs with the chosen metrics; `*` marks the best value of each."""
    table = [["run", "state", "step", *metrics]]
    table += [[row.run.name, row.state, f"{row.results.get('step', '-')}"] for row in rows]
    for name in metrics:
        lower = any(word in name.rpartition("/")[2] for word in LOWER_IS_BETTER)
        values = [row.results[name] for row in rows if row.has(name)]
        best = (min if lower else max)(values, default=None)
        for row, cells in zip(rows, table[1:], strict=True):
            value = row.results.get(name)
            mark = " *" if value is not None and value == best else "  "
            cells.append("-  " if value is None else f"{value:.4g}{mark}")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for cells in table:
        left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)
