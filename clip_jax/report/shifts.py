"""Plots of accuracy on shifted images against that on the standard ones, a point a model."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from scipy.special import expit, logit

from clip_jax.evaluation.effective_robustness import Shift, shifts
from clip_jax.evaluation.results import Results
from clip_jax.report.charts import LEGEND_ROW, Theme, as_png, new_figure
from clip_jax.report.page import Section, made_or_left_out

_SIDE = 3.3  # inches of the plot
_LIMIT = 0.002  # shares nearer to 0 and 1 are drawn here
_ROOM = 0.25  # logits around the outermost point
_LOW_TICKS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
_TICKS = (*_LOW_TICKS, 0.5, *(1 - tick for tick in _LOW_TICKS[::-1]))
_MOST_TICKS = 7
_LEAD = (
    "Accuracy under a shift against accuracy without it, on logit axes with 95 % intervals. The"
    " line is equal accuracy; it is no fit to models trained on ImageNet. If the shifted set has a"
    " part of ImageNet's classes, ImageNet's images are of these; answers are among all classes."
)


@dataclasses.dataclass(frozen=True)
class ShiftPlot:
    """Models on a shifted set and on the standard one, by the names to be shown."""

    shifts: Mapping[str, Shift]
    summary: str = ""

    @property
    def title(self) -> str:
        """The shifted set."""
        return next(iter(self.shifts.values())).shifted

    @property
    def alt(self) -> str:
        """Description for readers who do not see the picture."""
        return f"accuracy on {self.title} against accuracy on the standard set"

    def png(self, theme: Theme) -> bytes:
        """The plot as a PNG with transparent background."""
        rows = -(-len(self.shifts) // 2)
        figure, axes = new_figure(theme)
        figure.set_figheight(_SIDE + LEGEND_ROW * rows)
        ends = []
        for number, (name, shift) in enumerate(self.shifts.items()):
            both = shift.on_standard, shift.on_shifted
            x, y = (np.clip(each, _LIMIT, 1 - _LIMIT) for each in both)
            ends += [x, y]
            color = theme.lines[number % len(theme.lines)]
            axes.plot(x[1:], y[[0, 0]], color=color, linewidth=1.4)
            axes.plot(x[[0, 0]], y[1:], color=color, linewidth=1.4)
            axes.plot(x[0], y[0], color=color, marker="o", linestyle="", markersize=6, label=name)
        low, high = expit(logit(np.min(ends)) - _ROOM), expit(logit(np.max(ends)) + _ROOM)
        axes.plot((low, high), (low, high), color=theme.ink, linewidth=1, linestyle="--", alpha=0.7)
        ticks = [tick for tick in _TICKS if low <= tick <= high]
        ticks = ticks[:: -(-len(ticks) // _MOST_TICKS) or 1]
        for axis, scale, limits in (
            (axes.xaxis, axes.set_xscale, axes.set_xlim),
            (axes.yaxis, axes.set_yscale, axes.set_ylim),
        ):
            scale("logit")
            axis.set_major_locator(FixedLocator(ticks))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
            limits(low, high)
        axes.grid(axis="x", color=theme.grid, linewidth=0.9)
        standard = next(iter(self.shifts.values())).standard
        axes.set_xlabel(standard, color=theme.ink, fontsize=9.5)
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9,
                      labelcolor=theme.ink)  # fmt: skip
        return as_png(figure)


def shift_sections(results: Results, short_name: Mapping[str, str]) -> Sequence[Section]:
    """The section of the plots, or none if no model has rows of a shifted and a standard set."""
    by_sets: dict[tuple[str, str], dict[str, Shift]] = {}
    for shift in shifts(results):
        models = by_sets.setdefault((shift.shifted, shift.standard), {})
        models[short_name[shift.model]] = shift
    plots: list[Any] = [ShiftPlot(models) for models in by_sets.values()]
    if not plots:
        return []
    return [made_or_left_out("Effective robustness", "charts", lambda: (_LEAD, plots))]
