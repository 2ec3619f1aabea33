"""Results of a sweep's runs, read from their folders."""

import itertools
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clip_jax.errors import UserError
from clip_jax.sweep.plan import Run


@dataclass
class Row:
    """One run with its state and results (`loss`, `task/metric`, … to number)."""

    run: Run
    state: str
    results: dict[str, float] = field(default_factory=dict)


def read_rows(runs: Sequence[Run]) -> list[Row]:
    """Reads every run's last metrics, and its last evaluation of each task and data set."""
    evaluations = {run.name: last_evaluations(Path(run.workdir)) for run in runs}
    prefixes = column_prefixes({key for of_run in evaluations.values() for key in of_run})
    rows = []
    for run in runs:
        row = Row(run, run.state(), last_metrics(Path(run.workdir)))
        for key, values in evaluations[run.name].items():
            row.results |= {f"{prefixes[key]}/{name}": value for name, value in values.items()}
        rows.append(row)
    return rows


def column_prefixes(evaluated: Collection[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Maps (task, data set) to the task and the part of the data set's name that is not shared.

    `retrieval` on glyphs/test and glyphs/test/seen gives `retrieval` and `retrieval/seen`; a task's
    only data set gives the task's name alone.
    """
    parts: dict[str, list[list[str]]] = {}
    for task, dataset in evaluated:
        parts.setdefault(task, []).append(dataset.split("/"))
    shared = {
        task: len(list(itertools.takewhile(lambda c: len(set(c)) == 1, zip(*lists, strict=False))))
        for task, lists in parts.items()
    }
    return {
        (task, dataset): "/".join([task, *dataset.split("/")[shared[task] :]])
        for task, dataset in evaluated
    }


def last_metrics(directory: Path) -> dict[str, float]:
    """Reads the newest values of `step`, `samples_seen` and `loss` from metrics.jsonl."""
    latest: dict[str, float] = {}
    for record in read_lines(directory / "metrics.jsonl"):
        latest |= numbers(record, only=("step", "samples_seen", "loss"))
    return {name: latest[name] for name in ("step", "samples_seen", "loss") if name in latest}


def last_evaluations(directory: Path) -> dict[tuple[str, str], dict[str, float]]:
    """Maps (task, data set) to the metrics of its last evaluation in evaluation.jsonl."""
    latest: dict[tuple[str, str], dict[str, float]] = {}
    for record in read_lines(directory / "evaluation.jsonl"):
        key = (str(record.get("task", "")), str(record.get("dataset", "")))
        latest[key] = {name: v for name, v in numbers(record).items() if name != "step"}
    return latest


def numbers(record: dict[str, Any], only: Sequence[str] = ()) -> dict[str, float]:
    """Returns the numeric values of a record."""
    return {
        name: value
        for name, value in record.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and (not only or name in only)
    }


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Reads the objects of a JSON-lines file; returns none if it is missing.

    Skips a last line that a killed trainer left unfinished.
    """
    try:
        lines = path.read_text().splitlines()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is not JSON: {error}") from error
        if isinstance(record, dict):
            records.append(record)
    return records
