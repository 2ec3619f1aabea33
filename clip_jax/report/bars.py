"""Bar charts with intervals, a row for each dataset and a colour for each model."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from clip_jax.report.charts import LEGEND_ROW, Theme, as_png, new_figure

ROW = 0.26  # inches of a bar
ROOM = 0.85  # inches of the axis below
LONGEST = 36  # letters of a row's name


@dataclasses.dataclass(frozen=True)
class Bars:
    """Shares in [0, 1] of several series over the same rows, with intervals.

    Attributes:
      names: of the rows.
      series: name -> (value, low, high) of each row, NaN where there is none.
      level: (value of each row, name), such as chance; drawn as a tick.
    """

    title: str
    names: Sequence[str]
    series: Mapping[str, Sequence[tuple[float, float, float]]]
    level: tuple[Sequence[float], str] | None = None
    summary: str = ""

    @property
    def alt(self) -> str:
        """Description for readers who do not see the picture."""
        return f"bars: {self.title}"

    def png(self, theme: Theme) -> bytes:
        """The bars as a PNG with transparent background."""
        count, rows = len(self.series), len(self.names)
        height = ROOM + ROW * rows * (count + 0.6)
        figure, axes = new_figure(theme, legend_rows=-(-count // 2) if count > 1 else 0)
        figure.set_figheight(height + (LEGEND_ROW * count if count > 1 else 0))
        at = np.arange(rows) * (count + 0.6)
        for number, (name, values) in enumerate(self.series.items()):
            value, low, high = 100 * np.asarray(values, np.float64).reshape(-1, 3).T
            color = theme.lines[number % len(theme.lines)]
            axes.barh(at + number, value, height=0.8, color=color, alpha=0.85, label=name)
            axes.hlines(at + number, low, high, color=theme.ink, linewidth=1.6)
        if self.level is not None:
            middle = at + (count - 1) / 2
            level = 100 * np.asarray(self.level[0], np.float64)
            half = count / 2
            axes.vlines(level, middle - half, middle + half, color=theme.ink, linestyle=":",
                        label=self.level[1])  # fmt: skip
        axes.set_yticks(at + (count - 1) / 2, [_shown(name) for name in self.names])
        axes.set_ylim(at[-1] + count, -1)  # the first row on top
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=theme.grid, linewidth=0.9)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g} %"))
        if count > 1 or self.level is not None:
            figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9,
                          labelcolor=theme.ink)  # fmt: skip
        return as_png(figure)


def _shown(name: str) -> str:
    """Cuts a long name in its middle, as names differ at both ends."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"
