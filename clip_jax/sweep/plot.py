"""Plot of a sweep: a metric against the swept keys.

One key gives a line. Two keys give a line for each value of the second, or a heat map if both have
many values. More keys, or random draws of two, give one panel of points per key.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from clip_jax.sweep.table import Row

MAX_LINES = 8
MIN_HEAT_MAP_VALUES = 4
RUN = "run"  # in place of a key, if no key differs
LOG_RATIO = 8  # an axis whose values span this factor is logarithmic
PANEL_INCHES = (5.2, 3.9)

Draw = Callable[[Axes, Sequence[Row], str], None]  # axis, all runs, metric


def write_plot(rows: Sequence[Row], metrics: Sequence[str], path: Path, title: str) -> None:
    """Writes a PNG with a row of panels for each metric."""
    draws = panels(rows)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(draws), height * len(metrics)), layout="constrained")
    grid = figure.subplots(len(metrics), len(draws), squeeze=False)
    for metric, axes in zip(metrics, grid, strict=True):
        is_empty = not any(row.has(metric) for row in rows)
        for axis, draw in zip(axes, draws, strict=True):
            axis.set_title(metric, fontsize=10)
            if is_empty:
                axis.text(0.5, 0.5, "no values", ha="center", transform=axis.transAxes)
            else:
                draw(axis, rows, metric)
    figure.suptitle(f"sweep {title}", fontsize=11)
    figure.savefig(path, dpi=120)


def panels(rows: Sequence[Row]) -> list[Draw]:
    """Chooses how to draw this sweep: one function per panel."""
    values = {key: distinct(rows, key) for key in swept_keys(rows)}
    if len(values) < 2:
        return [partial(draw_lines, x=key) for key in values or (RUN,)]
    if len(values) == 2:
        # The x axis prefers numbers to names, and the key with more values.
        x, series = sorted(values, key=lambda k: (not is_numeric(values[k]), -len(values[k])))
        pairs = {(setting(row, x), setting(row, series)) for row in rows}
        is_full = len(pairs) == len(values[x]) * len(values[series])
        if is_full and min(len(v) for v in values.values()) >= MIN_HEAT_MAP_VALUES:
            return [partial(draw_heat_map, x=x, y=series)]
        if len(values[series]) <= MAX_LINES and (is_full or len(pairs) > len(values[x])):
            return [partial(draw_lines, x=x, series=series)]
    return [partial(draw_lines, x=key, means=False) for key in values]


def swept_keys(rows: Sequence[Row]) -> list[str]:
    """The keys that differ between runs; leaves out seeds, to average over, if there are others."""
    keys = dict.fromkeys(key for row in rows for key in row.run.overrides)
    differing = [key for key in keys if len(distinct(rows, key)) > 1]
    return [key for key in differing if key.rpartition(".")[2] != "seed"] or differing


def setting(row: Row, key: str) -> Any:
    """Returns a run's value of a key, made hashable; "default" if the run does not set it."""
    if key == RUN:
        return row.run.name
    value = row.run.overrides.get(key, "default")
    return str(value) if isinstance(value, list | tuple | bool | None) else value


def distinct(rows: Sequence[Row], key: str) -> list[Any]:
    """Returns the key's distinct values: numbers sorted, others in order of occurrence."""
    values = list(dict.fromkeys(setting(row, key) for row in rows))
    return sorted(values) if is_numeric(values) else values


def is_numeric(values: Sequence[Any]) -> bool:
    """Whether every value can be put on an axis as a number."""
    return all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def text(value: Any) -> str:
    """Formats a value as a label."""
    return f"{value:.4g}" if isinstance(value, int | float) else str(value)


def set_x_axis(axis: Axes, rows: Sequence[Row], key: str) -> dict[Any, float]:
    """Labels and scales the x axis for a key; returns the position of each of its values."""
    values = distinct(rows, key)
    axis.set_xlabel(key)
    if not is_numeric(values):
        axis.set_xticks(range(len(values)), [text(value) for value in values])
        axis.set_xlim(-0.5, len(values) - 0.5)  # leaves room for names without values yet
        return {value: float(position) for position, value in enumerate(values)}
    if min(values) > 0 and max(values) / min(values) >= LOG_RATIO:
        axis.set_xscale("log")
    if len(values) <= MAX_LINES:
        axis.set_xticks(values, [text(value) for value in values])
        axis.minorticks_off()
        axis.tick_params(axis="x", labelrotation=30 if len(values) > 5 else 0)
    return {value: float(value) for value in values}


def draw_lines(
    axis: Axes,
    rows: Sequence[Row],
    metric: str,
    x: str,
    series: str | None = None,
    means: bool = True,
) -> None:
    """Draws each run as a point, and with `means` a line of means for each value of `series`."""
    positions = set_x_axis(axis, rows, x)
    is_line = means and is_numeric(distinct(rows, x))  # nothing lies between two names
    for value in distinct(rows, series) if series else [None]:
        groups: dict[float, list[float]] = {}
        for row in rows:
            if row.has(metric) and (series is None or setting(row, series) == value):
                groups.setdefault(positions[setting(row, x)], []).append(row.results[metric])
        places = sorted(groups)
        across = [place for place in places for _ in groups[place]]
        up = [y for place in places for y in groups[place]]
        label = f"{series} = {text(value)}" if series else None
        dots = axis.scatter(across, up, s=24, label=label)
        if is_line and places:
            averages = [sum(groups[place]) / len(groups[place]) for place in places]
            axis.plot(places, averages, color=dots.get_facecolor()[0])
    axis.set_ylabel(metric.rpartition("/")[2])
    axis.grid(alpha=0.3)
    if series:
        axis.legend(fontsize=8)


def draw_heat_map(axis: Axes, rows: Sequence[Row], metric: str, x: str, y: str) -> None:
    """Draws the mean of each pair of values as a cell with its number."""
    columns, lines = distinct(rows, x), distinct(rows, y)
    cells: dict[tuple[int, int], list[float]] = {}
    for row in [row for row in rows if row.has(metric)]:
        place = (lines.index(setting(row, y)), columns.index(setting(row, x)))
        cells.setdefault(place, []).append(row.results[metric])
    means = [[math.nan] * len(columns) for _ in lines]
    for (line, column), values in cells.items():
        means[line][column] = sum(values) / len(values)
    image = axis.imshow(means, aspect="auto", origin="lower", cmap="viridis")
    finite = [v for of_line in means for v in of_line if math.isfinite(v)]
    middle = (min(finite) + max(finite)) / 2
    for (line, column), _ in cells.items():
        mean = means[line][column]
        color = "white" if mean < middle else "black"
        axis.text(column, line, f"{mean:.3g}", ha="center", va="center", color=color, fontsize=8)
    axis.set_xticks(range(len(columns)), [text(value) for value in columns], rotation=30)
    axis.set_yticks(range(len(lines)), [text(value) for value in lines])
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.figure.colorbar(image, ax=axis)
