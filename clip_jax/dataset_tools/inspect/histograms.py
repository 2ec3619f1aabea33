"""Histograms as PNG, in the style of the report's charts."""

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
# Values beyond the quantile go into the last bar if they would stretch the axis by this factor.
_REST, _STRETCH = 0.98, 3
_FARTHEST = 1.3  # times the last bar; up to here a mark has its true place


@dataclass(frozen=True)
class Histogram:
    """Content of a histogram. `mark`: a reference value and its name."""

    title: str
    values: Sequence[float]
    unit: str
    mark: tuple[float, str] | None = None
    whole: bool = True  # whole numbers

    def summary(self) -> str:
        """Text with the median, the middle 90 %, and the extremes."""
        low, median, high = np.quantile(self.values, (0.05, 0.5, 0.95), method="nearest")
        least, most = min(self.values), max(self.values)
        return (
            f"median {self._number(median)}, 90 % between {self._number(low)} and"
            f" {self._number(high)}; from {self._number(least)} to {self._number(most)} {self.unit}"
        )

    def _number(self, value: float) -> str:
        return f"{value:,.0f}" if self.whole else f"{value:,.3g}"


def draw_histogram(histogram: Histogram, theme: Theme) -> bytes:
    """The histogram, records over values, as a PNG with transparent background."""
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
    if shown.min() == shown.max():  # a single bar would fill the whole width
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
    # The metadata names the version; omitting it gives equal bytes for equal data.
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _draw_mark(axes: Axes, mark: tuple[float, str], last: float, theme: Theme) -> None:
    """Draws a line at the mark; if that is far beyond the `last` bar, a dashed line at the edge
    with an arrow, which leaves room for the bars."""
    value, name = mark
    low, high = axes.get_xlim()
    is_beyond = value > _FARTHEST * last
    where = high if is_beyond else value
    axes.axvline(where, color=theme.lines[1], linewidth=1.4, linestyle="--" if is_beyond else "-")
    low, high = axes.get_xlim()
    is_right = where > (low + high) / 2  # text to its right would leave the picture
    axes.set_ylim(top=1.12 * axes.get_ylim()[1])  # for its name above the bars
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
    """Edges of the bars; for whole numbers every bar covers equally many."""
    low, high = float(values.min()), float(values.max())
    if whole:
        width = max(1, int(np.ceil((high - low + 1) / _BINS)))
        return np.arange(low - 0.5, high + width + 0.5, width)
    if low == high:
        return np.array([low - 0.05, low + 0.05])
    return np.linspace(low, high, _BINS + 1)
