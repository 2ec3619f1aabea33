"""Short table at the end of a run, with the next commands to try."""

import contextlib
import dataclasses
import json
import shlex
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.training.config import build_config
from clip_jax.training.log.metrics import format_seconds, read_rows
from clip_jax.training.source_flags import command_flags

Row = dict[str, Any]

WIDTH = 100  # characters that the table may take in a terminal
NO_VALUE = "–"


@dataclasses.dataclass(frozen=True)
class Column:
    """Metric that has a column in the table."""

    group: str
    title: str  # a few letters, for a terminal
    name: str  # spelled out
    metric: str  # its key in evaluation.jsonl


COLUMNS = (
    Column("zero-shot", "top-1", "top-1", "accuracy_top1"),
    Column("zero-shot", "top-5", "top-5", "accuracy_top5"),
    Column("zero-shot", "/class", "mean per class", "mean_per_class_accuracy"),
    *(
        Column(f"{query}→{found}", f"R@{k}", f"R@{k}", f"{query}_to_{found}_recall_at_{k}")
        for query, found in (("image", "text"), ("text", "image"))
        for k in (1, 5, 10)
    ),
)


def used_columns(rows: list[Row]) -> list[Column]:
    """Returns the columns that have a value in some row."""
    return [column for column in COLUMNS if any(column.metric in row for row in rows)]


def percentage(value: Any) -> str:
    """Formats a share as "12.3", or as a dash if it was not measured."""
    return f"{100 * value:.1f}" if isinstance(value, int | float) else NO_VALUE


def row_size(row: Row) -> str:
    """Formats the number of evaluated images."""
    size = row.get("num_image_queries", row.get("num_images"))
    return NO_VALUE if size is None else f"{size:,}"


def task_name(row: Row) -> str:
    """Returns the task without its family, which the dataset names: glyphs/letters -> letters."""
    return str(row.get("task", "")).rpartition("/")[2]


def last_evaluation(rows: list[Row]) -> list[Row]:
    """Returns the rows of the newest evaluated step."""
    newest = max((row.get("step", 0) for row in rows), default=None)
    return [row for row in rows if row.get("step", 0) == newest]


def format_rows(rows: list[Row]) -> str:
    """Formats evaluation rows as aligned text: one line per task and dataset, in per cent."""
    if not rows:
        return "no evaluation was asked for"
    columns = used_columns(rows)
    tabled = [row for row in rows if any(column.metric in row for column in columns)]
    lines = _table_lines(tabled, columns) if tabled else []
    return "\n".join([*lines, *(_plain_line(row) for row in rows if row not in tabled)])


def format_models(rows: list[Row]) -> str:
    """Formats the rows of one model as `format_rows`, those of several below their names."""
    models = {row["model"]: None for row in rows}
    if len(models) < 2:
        return format_rows(rows)
    tables = {m: format_rows([row for row in rows if row["model"] == m]) for m in models}
    return "\n\n".join(f"{model}\n{table}" for model, table in tables.items()) + "\n"


def _table_lines(rows: list[Row], columns: list[Column]) -> list[str]:
    titles = [f"{column.title:>5}" for column in columns]
    group_widths: Counter[str] = Counter()
    for column, title in zip(columns, titles, strict=True):
        group_widths[column.group] += len(title) + 1
    heads = " ".join(f"{group + ' %':^{width - 1}}" for group, width in group_widths.items())
    values = [" ".join(titles)]
    for row in rows:
        shares = [percentage(row.get(column.metric)) for column in columns]
        values.append(" ".join(map(str.rjust, shares, map(len, titles))))
    sizes, tasks = ["n", *map(row_size, rows)], ["task", *map(task_name, rows)]
    size_width, task_width = (max(map(len, texts)) for texts in (sizes, tasks))
    room = max(len("dataset"), WIDTH - task_width - len(values[0]) - size_width - 6)
    datasets = ["dataset", *(_shorten(str(row.get("dataset", "")), room) for row in rows)]
    width = max(map(len, datasets))
    lines = [
        f"{task:<{task_width}}  {dataset:<{width}}  {cells}  {size:>{size_width}}"
        for task, dataset, cells, size in zip(tasks, datasets, values, sizes, strict=True)
    ]
    return [" " * (task_width + width + 4) + heads.rstrip(), *lines]


def _plain_line(row: Row) -> str:
    """Formats a row whose metrics have no column."""
    metrics = ", ".join(
        f"{name} {value:.4g}"
        for name, value in row.items()
        if isinstance(value, int | float) and name != "step"
    )
    return f"{task_name(row)}  {row.get('dataset', '')}  {metrics}"


def _shorten(text: str, width: int) -> str:
    """Shortens a long path to its end, in which datasets differ."""
    return text if len(text) <= width else "…" + text[len(text) - width + 1 :]


def print_summary(workdir: Path) -> None:
    """Prints the last evaluation, the cost of the run, and the next commands to try."""
    metrics = read_rows(workdir / "metrics.jsonl")
    rows = last_evaluation(read_rows(workdir / "evaluation.jsonl"))
    shown = shown_path(workdir)
    print()
    if rows and "step" in rows[0]:
        print(f"evaluation at step {rows[0]['step']:,}\n")
    print(format_rows(rows))
    if metrics:
        last = metrics[-1]
        print(
            f"\ntrained {last['step']:,} steps, {last['samples_seen']:,} pairs, in "
            f"{format_seconds(last['seconds'])}; final loss {last['loss']:.3f}"
        )
    print()
    for name in ("model", "adapter"):
        if (workdir / name).is_dir():
            print(f"{name:<9}{shown / name}")
    if (workdir / "report.html").exists():
        print(f"report   {shown / 'report.html'}   (open it in a browser)")
    print("\nNext:")
    for command in next_commands(workdir):
        print(f"  {command}")


def shown_path(path: Path) -> Path:
    """Returns a path below the current folder as a relative one, which is shorter in commands."""
    absolute = path.absolute()
    try:
        return absolute.relative_to(Path.cwd())
    except ValueError:
        return path


def next_commands(workdir: Path) -> list[str]:
    """Returns commands to try with this run; FOLDER stands for a path that the user must give."""
    shown = str(shown_path(workdir))
    config = read_config(workdir)
    load = f"import clip_jax; clip = clip_jax.load({shown!r}); print(clip)"
    code = f'"{load}"' if not set(load) & set('"$`\\!') else shlex.quote(load)
    commands = [_evaluate_command(shown, config), f"{_python()} -c {code}"]
    if config.get("data", {}).get("format") == "glyphs":
        commands.append(
            f"{_python()} -m clip_jax.train --config=configs/own_images.py --workdir=runs/mine "
            "--config.data.path=FOLDER"
        )
    else:
        commands.append(f"{_python()} -m clip_jax.report --workdir={shlex.quote(shown)}")
    return commands


def read_config(workdir: Path) -> dict[str, Any]:
    """Reads the run's config.json; returns an empty dict if it cannot be read."""
    try:
        config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


def _python() -> str:
    """Returns the command for this interpreter: its relative path if below the current folder."""
    here = Path.cwd()
    executable = Path(sys.executable)
    return str(executable.relative_to(here)) if executable.is_relative_to(here) else "python"


def _evaluate_command(shown: str, config: dict[str, Any]) -> str:
    """Returns a command that repeats the run's evaluation, on glyphs if it was trained on them."""
    data, tasks, options = TaskData(), list[str](), ["--data=FOLDER"]
    with contextlib.suppress(UserError):  # config.json is gone, or of another version
        evaluations = build_config(config).evaluations
        if evaluations:  # one command has one data
            data = evaluations[0].task_data()
            tasks = [each.task for each in evaluations if each.task_data() == data]
    if config.get("data", {}).get("format") == "glyphs":
        tasks, options = tasks or ["glyphs/letters", "glyphs/retrieval"], []
    if data.path:
        options = command_flags(data, TaskData)
    return " ".join(
        [
            f"{_python()} -m clip_jax.evaluate --model={shlex.quote(shown)}",
            f"--tasks={','.join(tasks) or 'retrieval'}",
            *options,
            "--output=result.json",
        ]
    )
