"""Line charts and histograms as PNG, each in a light and a dark version."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

DPI = 200
SIZE = (4.4, 2.75)  # inches; about 115 pixels per inch on a desktop, 75 on a phone
LEGEND_ROW = 0.22  # inches
TICK_STEPS = [1, 2, 2.5, 5, 10]  # round numbers; by default 8, 16, 24 may come out
MAX_POINTS = 1500  # per curve; more points than pixels only cost time
BINS = 32
COLOURS = 128  # of a chart, with all steps between two at the edges
# Values beyond the quantile go into the last bar if they would stretch the axis by this factor.
REST, STRETCH = 0.98, 3


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a chart, whose background is transparent."""

    ink: str
    grid: str
    lines: tuple[str, ...]


LIGHT = Theme(
    ink="#475569",
    grid="#e2e8f0",
    lines=("#2563eb", "#ea580c", "#059669", "#9333ea", "#db2777", "#0891b2", "#a16207", "#64748b"),
)
DARK = Theme(
    ink="#a8b3c4",
    grid="#2c3646",
    lines=("#60a5fa", "#fb923c", "#34d399", "#c084fc", "#f472b6", "#22d3ee", "#facc15", "#94a3b8"),
)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Values over steps; `label` is shown if there are several."""

    steps: Sequence[float]
    values: Sequence[float]
    label: str = ""


@dataclasses.dataclass(frozen=True)
class Chart:
    """Curves over steps, or `across` something else. `level`: a horizontal line and its name."""

    title: str
    curves: Sequence[Curve]
    level: tuple[float, str] | None = None
    is_percentage: bool = False
    has_markers: bool = False
    summary: str = ""  # shown below
    across: str = "step"

    @property
    def alt(self) -> str:
        """Description for readers who do not see the picture."""
        return f"{self.title} over {self.across}"

    def png(self, theme: Theme) -> bytes:
        """The chart as a PNG with transparent background."""
        several = len(self.curves) > 1
        # The legend gets its own room below, so that it never covers a curve.
        figure, axes = new_figure(theme, legend_rows=-(-len(self.curves) // 2) if several else 0)
        for number, curve in enumerate(self.curves):
            stride = -(-len(curve.steps) // MAX_POINTS)
            axes.plot(
                # Sampling starts at the end, so that it keeps the newest value.
                list(curve.steps)[::-1][::stride],
                list(curve.values)[::-1][::stride],
                color=theme.lines[number % len(theme.lines)],
                linewidth=1.8,
                marker="o" if self.has_markers or len(curve.steps) == 1 else None,
                markersize=4.5,
                clip_on=False,  # shows markers at zero whole
                label=curve.label,
            )
        if self.level is not None:
            _draw_level(axes, *self.level, theme)
        axes.set_xlabel(self.across, color=theme.ink, fontsize=9.5)
        whole = self.across == "step"
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole, steps=TICK_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        unit = " %" if self.is_percentage else ""
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}{unit}"))
        axes.set_xlim(left=0)
        if self.is_percentage:
            axes.set_ylim(bottom=0)
        if several:
            figure.legend(
                loc="outside lower center",
                ncols=2,
                frameon=False,
                fontsize=9,
                labelcolor=theme.ink,
                handlelength=1.4,
                columnspacing=1.6,
            )
        return as_png(figure)


@dataclasses.dataclass(frozen=True)
class Histogram:
    """Numbers of records over a value; `is_whole`: the values are whole numbers."""

    title: str
    values: Sequence[float]
    unit: str
    is_whole: bool = True

    @property
    def alt(self) -> str:
        """Description for readers who do not see the picture."""
        return f"histogram: {self.title}"

    @property
    def summary(self) -> str:
        """Text with the median, the middle 90 %, and the extremes."""
        quantiles = np.quantile(self.values, (0, 0.05, 0.5, 0.95, 1), method="nearest")
        spell = "{:,.0f}" if self.is_whole else "{:,.3g}"
        least, low, median, high, most = (spell.format(value) for value in quantiles)
        return f"median {median}, 90 % between {low} and {high}; from {least} to {most} {self.unit}"

    def png(self, theme: Theme) -> bytes:
        """The histogram as a PNG with transparent background."""
        figure, axes = new_figure(theme)
        values = np.asarray(self.values, np.float64)
        rest = float(np.quantile(values, REST, method="lower"))
        is_cut = values.max() > STRETCH * rest > 0
        shown = np.minimum(values, rest) if is_cut else values
        axes.hist(shown, self._edges(shown).tolist(), color=theme.lines[0], rwidth=0.92)
        if shown.min() == shown.max():  # a single bar would fill the whole width
            room = 10 if self.is_whole else 1
            axes.set_xlim(shown.max() - room, shown.max() + room)
        label = self.unit + ("; the last bar: and more" if is_cut else "")
        axes.set_xlabel(label, color=theme.ink, fontsize=9.5)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=TICK_STEPS))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        return as_png(figure)

    def _edges(self, values: np.ndarray) -> np.ndarray:
        """Edges of the bars; for whole numbers every bar covers equally many."""
        low, high = float(values.min()), float(values.max())
        if self.is_whole:
            width = max(1, int(np.ceil((high - low + 1) / BINS)))
            return np.arange(low - 0.5, high + width + 0.5, width)
        if low == high:
            return np.array([low - 0.05, low + 0.05])
        return np.linspace(low, high, BINS + 1)


def _draw_level(axes: Axes, value: float, name: str, theme: Theme) -> None:
    axes.axhline(value, color=theme.ink, linewidth=1, linestyle=(0, (4, 3)), alpha=0.7)
    axes.annotate(
        name,
        (0.99, value),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=8.5,
        color=theme.ink,
    )
    axes.margins(y=0.1)


def new_figure(theme: Theme, legend_rows: int = 0) -> tuple[Figure, Axes]:
    """Returns an empty chart in the page's style, with room for rows of a legend below."""
    size = (SIZE[0], SIZE[1] + LEGEND_ROW * legend_rows)
    figure = Figure(figsize=size, dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.grid(axis="y", color=theme.grid, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=9.5, length=0, pad=5)
    return figure, axes


def as_png(figure: Figure) -> bytes:
    """Draws a figure as a PNG of a palette, which is a third of one of all colours."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba()))
    few = image.quantize(COLOURS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    few.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
