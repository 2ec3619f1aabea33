"""Histograms as PNG, in the look of the report's charts."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from clip_jax.report.charts import DPI, SIZE, TICK_STEPS, Theme

_BINS = 32
# What lies beyond this quantile is in the last bar where it would stretch the axis so many times.
_REST, _STRETCH = 0.98, 3
_FARTHEST = 1.3  # times the last bar, where a mark still has its true place


@dataclass(frozen=True)
class Histogram:
    """What is drawn. `mark`: a value to compare with, and its name."""

    title: str
    values: Sequence[float]
    unit: str
    mark: tuple[float, str] | None = None
    whole: bool = True  # numbers

    def summary(self) -> str:
        """Median, the middle 90 %, and the extremes, in words."""
        low, median, high = np.quantile(self.values, (0.05, 0.5, 0.95), method="nearest")
        least, most = min(self.values), max(self.values)
        return (
            f"median {self._number(median)}, 90 % between {self._number(low)} and"
            f" {self._number(high)}; from {self._number(least)} to {self._number(most)} {self.unit}"
        )

    def _number(self, value: float) -> str:
        return f"{value:,.0f}" if self.whole else f"{value:,.3g}"


def draw_histogram(histogram: Histogram, theme: Theme) -> bytes:
    """The histogram as a PNG with transparent background; records over values."""
    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    values = np.asarray(histogram.values, np.float64)
    top = float(values.max())
    rest = float(np.quantile(values, _REST, method="lower"))
    is_cut = top > _STRETCH * rest > 0
    shown = np.minimum(values, rest) if is_cut else values
    axes.hist(shown, _edges(shown, histogram.whole).tolist(), color=theme.lines[0], rwidth=0.92)
    if shown.min() == shown.max():  # one bar, which would fill the whole width
        room = 10 if histogram.whole else 1
        axes.set_xlim(shown.max() - room, shown.max() + room)
    if histogram.mark is not None:
        _draw_mark(axes, histogram.mark, float(shown.max()), theme)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.grid(axis="y", color=theme.grid, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=9.5, length=0, pad=5)
    label = histogram.unit + ("; the last bar: and more" if is_cut else "")
    axes.set_xlabel(label, color=theme.ink, fontsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=TICK_STEPS))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    buffer = io.BytesIO()
    # Without the metadata, which names the version: equal data give equal bytes.
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw_mark(axes: Axes, mark: tuple[float, str], last: float, theme: Theme) -> None:
    """A line at the mark; of one far beyond the `last` bar at the edge, dashed, with an arrow:
    there is room for the bars then."""
    value, name = mark
    low, high = axes.get_xlim()
    is_beyond = value > _FARTHEST * last
    where = high if is_beyond else value
    axes.axvline(where, color=theme.lines[1], linewidth=1.4, linestyle="--" if is_beyond else "-")
    low, high = axes.get_xlim()
    is_right = where > (low + high) / 2  # where words to the right of it would leave the picture
    axes.set_ylim(top=1.12 * axes.get_ylim()[1])  # room for its name above the bars
    axes.annotate(
        f"{name} → {value:,.6g}" if is_beyond else name,
        (where, 0.98),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if is_right else 4, 0),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="top",
        fontsize=8.5,
        color=theme.ink,
    )


def _edges(values: np.ndarray, whole: bool) -> np.ndarray:
    """Of the bars; of whole numbers each bar has as many."""
    low, high = float(values.min()), float(values.max())
    if whole:
        width = max(1, int(np.ceil((high - low + 1) / _BINS)))
        return np.arange(low - 0.5, high + width + 0.5, width)
    if low == high:
        return np.array([low - 0.05, low + 0.05])
    return np.linspace(low, high, _BINS + 1)
