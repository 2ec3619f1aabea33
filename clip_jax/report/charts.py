"""Line charts as PNG, each in a light and a dark version."""

import dataclasses
import io
from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

DPI = 200
SIZE = (4.4, 2.75)  # inches; about 115 pixels per inch on a desktop, 75 on a phone
TICK_STEPS = [1, 2, 2.5, 5, 10]  # round numbers; by default 8, 16, 24 may come out
MAX_POINTS = 1500  # per curve; more points than pixels only cost time

LINES = ("#2563eb", "#ea580c", "#059669", "#9333ea", "#db2777", "#0891b2", "#a16207", "#64748b")


@dataclasses.dataclass(frozen=True)
class Theme:
    """Colours of a chart, whose background is transparent."""

    ink: str
    grid: str
    lines: Sequence[str]


LIGHT = Theme(ink="#475569", grid="#e2e8f0", lines=LINES)
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
    """Content of a chart. `level`: a horizontal reference line and its name."""

    title: str
    curves: Sequence[Curve]
    level: tuple[float, str] | None = None
    is_percentage: bool = False
    has_markers: bool = False


def draw(chart: Chart, theme: Theme) -> bytes:
    """The chart as a PNG with transparent background."""
    several = len(chart.curves) > 1
    legend_rows = -(-len(chart.curves) // 2) if several else 0
    # The legend gets its own room below, so that it never covers a curve.
    figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.22 * legend_rows), dpi=DPI, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for curve, colour in zip(chart.curves, _cycle(theme.lines, len(chart.curves)), strict=True):
        stride = -(-len(curve.steps) // MAX_POINTS)
        axes.plot(
            # Sampling starts at the end, so that it keeps the newest value.
            list(curve.steps)[::-1][::stride],
            list(curve.values)[::-1][::stride],
            color=colour,
            linewidth=1.8,
            marker="o" if chart.has_markers or len(curve.steps) == 1 else None,
            markersize=4.5,
            clip_on=False,  # shows markers at zero whole
            label=curve.label,
        )
    if chart.level is not None:
        value, name = chart.level
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
    _style(chart, axes, theme)
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
    buffer = io.BytesIO()
    # The metadata names the version; omitting it gives equal bytes for equal runs.
    canvas.print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()


def _style(chart: Chart, axes, theme: Theme) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.grid(axis="y", color=theme.grid, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.ink, labelsize=9.5, length=0, pad=5)
    axes.set_xlabel("step", color=theme.ink, fontsize=9.5)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=TICK_STEPS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=TICK_STEPS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    unit = " %" if chart.is_percentage else ""
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}{unit}"))
    axes.set_xlim(left=0)
    if chart.is_percentage:
        axes.set_ylim(bottom=0)


def _cycle(colours: Sequence[str], count: int) -> list[str]:
    return [colours[index % len(colours)] for index in range(count)]
