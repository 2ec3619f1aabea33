"""Page of the prompt laboratory: ensembles, the choice, and every candidate with its interval."""

from typing import Any

from clip_jax.report.bars import Bars
from clip_jax.report.page import Section, render, short
from clip_jax.report.result_words import spelled
from clip_jax.training.log.metrics import format_seconds

_SHOWN = 24  # candidates in the plot, best first
_NAME = 28  # letters of a template in the plot
_HELD_OUT = (
    "A choice is measured on images that it has not seen: it is repeated without each fifth of"
    " the images, and judged on that fifth. The interval is of the images drawn."
)

Rows = list[dict[str, Any]]


def build_prompts_page(result: dict[str, Any]) -> str:
    """Returns the page as HTML; `result` is what results.json holds."""
    validation, test = result["validation"], result.get("test")
    figures = [
        (f"{len(validation['candidates'])}", "candidates"),
        (f"{len(result['chosen'])}", "chosen"),
        (f"{result['num_classes']}", "classes"),
        (f"{validation['num_images']:,}", "images to choose"),
        *([(f"{test['num_images']:,}", "images to test")] if test else []),
        (format_seconds(result["seconds"]), "in all"),
    ]
    candidates = sorted(validation["candidates"], key=lambda row: -row["accuracy_top1"])
    lines = [(row["prompts"], spelled(row, "accuracy_top1"), _nats(row)) for row in candidates]
    path = [
        (row["prompts"], f"{100 * row['accuracy_top1']:.1f}") for row in validation["selection"]
    ]
    sections = [
        *([_ensembles(f"Test: {test['dataset']}", test, "Measured once.")] if test else []),
        _ensembles(f"Validation: {validation['dataset']}", validation, _HELD_OUT),
        Section(
            "The choice", "lists", "In the order of its addition; the accuracy is of the images of"
            " the choice itself, and too good.", [(1, ("prompts", "accuracy, %"), path)],
        ),
        Section("Candidates, plotted", "charts", _lead(len(candidates)), [_bars(candidates)]),
        Section("Candidates", "lists", "", [(1, ("prompts", "top-1, %", "log loss"), lines)]),
    ]  # fmt: skip
    return render(
        name=f"clip_jax prompts: {result['model']}",
        title=f"Prompts for {result['model']}",
        about="Zero-shot accuracy by prompts, with 95 % intervals.",
        figures=figures,
        sections=sections,
    )


def _ensembles(title: str, part: dict[str, Any], lead: str) -> Section:
    by_name = {row["prompts"]: row for row in part["differences"]}
    lines = []
    for row in part["ensembles"]:
        found = by_name.get(row["prompts"])
        gain = "–" if found is None else _points(found)
        p_value = "–" if found is None else f"{found['p_value']:.2g}"
        how = row.get("measured", "once")
        lines.append(
            (row["prompts"], how, spelled(row, "accuracy_top1"), _nats(row), gain, p_value)
        )
    against = part["differences"][0]["against"]
    titles = ("prompts", "measured", "top-1, %", "log loss", f"points above {against}", "p")
    return Section(title, "lists", lead, [(2, titles, lines)])


def _points(row: dict[str, Any]) -> str:
    value, low, high = (100 * row[f"difference{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _nats(row: dict[str, Any]) -> str:
    return f"{row['log_loss']:.3f}"


def _lead(count: int) -> str:
    return f"The best {_SHOWN} of {count}." if count > _SHOWN else ""


def _bars(candidates: Rows) -> Bars:
    shown = candidates[:_SHOWN]
    values = [tuple(row[f"accuracy_top1{end}"] for end in ("", "_low", "_high")) for row in shown]
    names = [short(row["prompts"], _NAME) for row in shown]
    return Bars("Each candidate alone", names, {"top-1": values})
