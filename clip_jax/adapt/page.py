"""Page of an adaptation: before and after, every run, and accuracy over shots."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from clip_jax.adapt.parts import ACCURACY, BEFORE, Row
from clip_jax.data.records import Source
from clip_jax.evaluation.disagreement import image_examples
from clip_jax.report.bars import Bars
from clip_jax.report.charts import Chart, Curve
from clip_jax.report.comparison import cards
from clip_jax.report.evaluation import confusions, spelled
from clip_jax.report.page import Section, render
from clip_jax.training.log.metrics import format_seconds

Samples = dict[str, np.ndarray]


def build_page(result: Row, samples: Samples, test: Source | None) -> str:
    """Returns the page as HTML; `result` is what result.json holds, `samples` of the kept run."""
    runs = result["runs"]
    key = "after" if "after" in result else "validation"
    figures = [
        (f"{100 * result[_before(key)][ACCURACY]:.1f} %", "before"),
        (f"{100 * result[key][ACCURACY]:.1f} %", "after"),
        (f"{result['trained_parameters']:,}", "trained values"),
        (f"{result['training_images']:,}", "training images"),
        (f"{result['num_classes']}", "classes"),
        (format_seconds(result["all_seconds"]), "in all"),
    ]
    where = "test images" if key == "after" else "validation images"
    sections = [
        Section("Accuracy", "charts", f"Top-1 on {where}, 95 % intervals.", _charts(runs, key)),
        Section(
            "Runs",
            "lists",
            "The kept run has the most shots and the best validation accuracy. Validation images"
            " choose options and run, so that their figures are too good.",
            [_table(runs)],
        ),
    ]
    sections += _base_and_new(runs)
    if test is not None:
        sections += _before_and_after(samples, test)
    return render(
        name=f"clip_jax adapt: {result['model']}",
        title=f"{result['model']}, adapted",
        about=f"By {result['method']}, on {result['data']}.",
        figures=figures,
        sections=sections,
    )


def _before(key: str) -> str:
    return "before" if key == "after" else "validation_before"


def _base_and_new(runs: Sequence[Row]) -> list[Section]:
    """Returns the section of runs that were judged on classes that they did not learn."""
    rows = [row for row in runs if "new" in row]
    if not rows:
        return []

    def line(name: str, row: Row, when: str) -> tuple[str, ...]:
        shares = row[when][ACCURACY], row["new"][when][ACCURACY], row["harmonic_mean"][when]
        of_run = ("–", "–") if when == "before" else (str(row["shots"]), str(row["seed"]))
        return name, *of_run, *(f"{100 * share:.1f}" for share in shares)

    lines = [line("zero-shot", rows[0], "before")]
    lines += [line(row["method"], row, "after") for row in rows]
    titles = ("method", "shots", "seed", "base, %", "new, %", "harmonic mean, %")
    lead = "Learned from the first half of the classes, and judged on both."
    return [Section("Base and new classes", "lists", lead, [(2, titles, lines)])]


def _before_and_after(after: Samples, test: Source) -> list[Section]:
    """Returns the sections of the kept run's classes, and of images whose answer changed."""
    before = after | {name: after[f"before_{name}"] for name in BEFORE}
    sections = [
        Section("Classes", "lists", "Of the kept run.", [_by_class(after)]),
        Section("Classes before", "lists", *confusions(before)),
        Section("Classes after", "lists", *confusions(after)),
    ]
    names = "after", "before"
    for better, worse, words in ((after, before, names), (before, after, names[::-1])):
        total, examples = image_examples(better, worse, test)
        lead = f"{total:,} test images; those of the surest wrong answers."
        title = f"Right {words[0]}, wrong {words[1]}"
        if examples:
            sections.append(Section(title, "answers", lead, cards(examples, *words)))
    return sections


def _charts(runs: Sequence[Row], key: str) -> list[Any]:
    """Returns a bar for each method and number of shots, before and after curves if there are."""
    return [*_over_shots(runs, key), _bars(runs, key), *_wise_ft(runs)]


def _wise_ft(runs: Sequence[Row]) -> list[Chart]:
    """Returns the curves from the model as it was to the adapted one."""
    curves = []
    for method in dict.fromkeys(row["method"] for row in runs if "wise_ft" in row):
        lines = [row["wise_ft"] for row in runs if row["method"] == method and "wise_ft" in row]
        parts = [point["part"] for point in lines[0]]
        for where in ("validation", "test"):
            if where in lines[0][0]:
                values = np.mean([[point[where] for point in line] for line in lines], axis=0)
                curves.append(Curve(parts, (100 * values).tolist(), f"{method}, {where}"))
    if not curves:
        return []
    chart = Chart(
        "WiSE-FT: top-1 accuracy",
        curves,
        is_percentage=True,
        has_markers=True,
        summary="From the model as it was to the adapted one; means over seeds.",
        across="part of the way",
    )
    return [chart]


def _over_shots(runs: Sequence[Row], key: str) -> list[Chart]:
    """Returns the curves over several numbers of shots."""
    shots = sorted({row["shots"] for row in runs if row["shots"] != "all"})
    if len(shots) < 2:
        return []

    def mean(method: str, count: int) -> float:
        mine = [row for row in runs if (row["method"], row["shots"]) == (method, count)]
        return 100 * float(np.mean([row[key][ACCURACY] for row in mine]))

    methods = list(dict.fromkeys(row["method"] for row in runs))
    curves = [Curve(shots, [mean(name, count) for count in shots], name) for name in methods]
    level = 100 * runs[0][_before(key)][ACCURACY], "zero-shot"
    over = Chart(
        "Top-1 accuracy over shots",
        curves,
        level,
        is_percentage=True,
        has_markers=True,
        summary="Means over seeds.",
        across="images a class",
    )
    return [over]


def _bars(runs: Sequence[Row], key: str) -> Bars:
    names, values = ["zero-shot"], [_limits(runs[0][_before(key)])]
    for group in dict.fromkeys((row["method"], row["shots"]) for row in runs):
        of_group = [row[key] for row in runs if (row["method"], row["shots"]) == group]
        names.append(f"{group[0]}, {group[1]} shots")
        values.append(tuple(np.mean([_limits(row) for row in of_group], axis=0).tolist()))
    summary = "Means over seeds."
    return Bars("Top-1 accuracy", names, {"accuracy": values}, summary=summary)


def _limits(row: Row) -> tuple[float, float, float]:
    return row[ACCURACY], row[f"{ACCURACY}_low"], row[f"{ACCURACY}_high"]


def _table(runs: Sequence[Row]) -> tuple[int, Any, Any]:
    lines = []
    for row in runs:
        after = spelled(row["after"], ACCURACY) if "after" in row else "–"
        found = row.get("difference")
        points = "–" if found is None else f"{100 * found['difference']:+.1f}"
        lines.append(
            (
                row["method"],
                str(row["shots"]),
                str(row["seed"]),
                f"{row['trained_parameters']:,}",
                spelled(row["validation"], ACCURACY),
                after,
                points,
                format_seconds(row["seconds"]),
            )
        )
    titles = ("method", "shots", "seed", "values", "validation, %", "test, %", "points", "time")
    return 2, titles, lines


def _by_class(samples: Samples) -> tuple[int, Any, Any]:
    names = samples["classnames"].tolist()
    labels, right = samples["labels"], samples["labels"] == samples["predictions"]
    lines = []
    for number, name in enumerate(names):
        mine = labels == number
        if mine.any():
            mistaken = samples["predictions"][mine & ~right]
            often = np.bincount(mistaken).argmax() if len(mistaken) else None
            worst = "–" if often is None else names[int(often)]
            lines.append((name, f"{mine.sum()}", f"{100 * right[mine].mean():.0f}", worst))
    lines.sort(key=lambda line: float(line[2]))
    return 1, ("class", "images", "right, %", "most often taken for"), lines
