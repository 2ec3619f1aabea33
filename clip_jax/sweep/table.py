"""Table and plot of a sweep, from the files in its runs' directories."""

import csv
import difflib
import math
from collections.abc import Sequence
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.sweep.plan import Run
from clip_jax.sweep.results import Row, read_rows

CSV_FILE = "sweep.csv"
PLOT_FILE = "sweep.png"
OWN_COLUMNS = ("run", "state", "step", "samples_seen", "loss")
MAX_DEFAULT_METRICS = 4
LOWER_IS_BETTER = ("loss", "rank", "error")


def write_report(runs: Sequence[Run], workdir: Path, metrics: Sequence[str] | None) -> None:
    """Writes DIR/sweep.csv and DIR/sweep.png, and prints a short table.

    Raises UserError for a metric that no run has, after writing the CSV.
    """
    rows = read_rows(runs)
    names = list(dict.fromkeys(name for row in rows for name in row.results))
    write_csv(rows, names, workdir / CSV_FILE)
    plottable = [name for name in names if name not in ("step", "samples_seen")]
    if not plottable:
        print(f"no run has results yet\ntable: {workdir / CSV_FILE}")
        return
    chosen = [resolve_metric(m, plottable) for m in metrics] if metrics else defaults(plottable)
    print(text_table(rows, chosen))
    from clip_jax.sweep.plot import (
        write_plot,  # matplotlib takes a second to import, and only this needs it
    )

    write_plot(rows, chosen, workdir / PLOT_FILE, workdir.name)
    print(f"\ntable: {workdir / CSV_FILE}\nplot:  {workdir / PLOT_FILE}")


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
    """Returns the column that `asked` names, in full or by a unique ending."""
    if asked in known:
        return asked
    endings = [name for name in known if name.endswith(f"/{asked}")]
    if len(endings) == 1:
        return endings[0]
    if endings:
        raise UserError(f"--metric={asked}: could be any of {', '.join(endings)}; give one")
    # The name `task/metric` is ambiguous if every column also names a data set.
    task, _, metric = asked.rpartition("/")
    with_dataset = [n for n in known if n.startswith(f"{task}/") and n.endswith(f"/{metric}")]
    if with_dataset:
        raise UserError(f"--metric={asked}: could be any of {', '.join(with_dataset)}; give one")
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
    best = {}
    for name in metrics:
        values = [
            row.results[name] for row in rows if math.isfinite(row.results.get(name, math.nan))
        ]
        if values:
            lower = any(word in name.rpartition("/")[2] for word in LOWER_IS_BETTER)
            best[name] = min(values) if lower else max(values)
    table = [["run", "state", "step", *metrics]]
    for row in rows:
        cells = [row.run.name, row.state, f"{row.results.get('step', '-')}"]
        for name in metrics:
            value = row.results.get(name)
            mark = " *" if value is not None and value == best.get(name) else "  "
            cells.append("-  " if value is None else f"{value:.4g}{mark}")
        table.append(cells)
    widths = [max(len(cells[column]) for cells in table) for column in range(len(table[0]))]
    lines = []
    for cells in table:
        left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
        lines.append("  ".join(left + right).rstrip())
    return "\n".join(lines)
