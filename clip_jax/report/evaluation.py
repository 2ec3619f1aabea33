"""Page of an evaluation: figures with their intervals, bars over datasets, and what went wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.evaluation.comparison import differences
from clip_jax.evaluation.metrics.calibration import reliability
from clip_jax.evaluation.results import Results, Row
from clip_jax.files.disk import write_text, writing
from clip_jax.report.bars import Bars
from clip_jax.report.charts import Chart, Curve
from clip_jax.report.page import Section, made_or_left_out, render, short
from clip_jax.training.log.metrics import format_seconds

MOST_CLASSES = 30  # of a confusion matrix; of more classes, only the pairs most often mistaken
PAIRS = 12
_NO_SHARES = ("_rank", "_loss")  # endings of metrics that are not in per cent


REPORT = "report.html"


def write_evaluation_page(results: Results, is_compared: bool) -> Path:
    """Writes report.html beside the rows, and returns its path."""
    assert results.folder is not None
    compared = comparison_sections(results) if is_compared else []
    with writing(results.folder):
        write_text(results.folder / REPORT, build_evaluation_page(results, compared))
    return results.folder / REPORT


def build_evaluation_page(results: Results, compared: Sequence[Section] = ()) -> str:
    """The whole page as HTML; `compared` are sections on the models' differences."""
    short_name = _short_names([row["model"] for row in results.rows])
    named = [(row, {**row, "model": short_name[row["model"]]}) for row in results.rows]
    rows = [row for _, row in named if "error" not in row]
    failed = [row for _, row in named if "error" in row]
    models = list(dict.fromkeys(short_name.values()))
    sections = [
        made_or_left_out("Results", "lists", lambda: _table(rows, models)),
        made_or_left_out("Over datasets", "charts", lambda: _bars(rows, models)),
        *compared,
    ]
    if failed:
        lines = [(row["model"], f"{row['task']}, {row['dataset']}", row["error"]) for row in failed]
        sections.append(
            Section("Not evaluated", "lists", body=[(3, ("model", "set", "why"), lines)])
        )
    for original, row in named:
        sections += _details(row, results.samples(original), len(models) > 1)
    sections.append(
        made_or_left_out("Other metrics", "lists", lambda: _other_metrics(rows, models))
    )
    shown = models[0] if len(models) == 1 else f"{len(models)} models"
    return render(
        name=f"clip_jax evaluation: {shown}",
        title=f"Evaluation of {shown}",
        about="Shares in per cent; the 95 % interval is of the images drawn, not of training.",
        figures=_figures(rows, failed, models),
        sections=sections,
    )


def _short_names(models: Sequence[str]) -> dict[str, str]:
    """Returns each model's name without the folders that all have in common."""
    parts = {model: model.rstrip("/").split("/") for model in models}
    shared = 0
    while len({tuple(words[: shared + 1]) for words in parts.values()}) == 1 and all(
        len(words) > shared + 1 for words in parts.values()
    ):
        shared += 1
    return {model: "/".join(words[shared:]) for model, words in parts.items()}


def main_metric(row: Row) -> str | None:
    """Returns the name of a row's main metric; None if it has none with an interval."""
    named = row.get("metric")
    if named in row:
        return str(named)
    return next((key for key in row if f"{key}_low" in row), None)


def row_name(row: Row) -> str:
    """Returns dataset and task for people, such as "cifar10, knn"."""
    task = row["task"]
    return row["dataset"] if task == "zero_shot" else f"{row['dataset']}, {task}"


def _size(row: Row) -> int:
    return int(row.get("num_images") or row.get("num_samples") or 0)


def spelled(row: Row, metric: str) -> str:
    """Formats a metric with its interval in per cent, such as "63.3 (62.9–63.7)"."""
    value, low, high = (row.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    factor, digits = (1, 2) if metric.endswith(_NO_SHARES) else (100, 1)
    value, *limits = (f"{factor * x:,.{digits}f}" for x in (value, low, high) if x is not None)
    return f"{value} ({'–'.join(limits)})" if limits else value


def comparison_sections(results: Results) -> list[Section]:
    """Sections on the differences of the models, and the images on which two disagree most."""

    short_name = _short_names([row["model"] for row in results.rows])

    def table() -> tuple[str, Any]:
        lines = []
        for row in differences(results):
            low, high = (f"{100 * row[f'difference_{end}']:+.1f}" for end in ("low", "high"))
            exact = row.get("mcnemar_p_value")
            lines.append(
                (
                    row_name(row),
                    _words(row["metric"]),
                    f"{short_name[row['model']]} − {short_name[row['against']]}",
                    f"{100 * row['difference']:+.1f} ({low} to {high})",
                    f"{row['p_value']:.2g}",
                    "–" if exact is None else f"{exact:.2g}",
                )
            )
        titles = ("set", "metric", "models", "difference", "p, bootstrap", "p, McNemar")
        return "In points, on the same samples; p-values are not adjusted.", [(3, titles, lines)]

    return [made_or_left_out("Differences", "lists", table)]


def _figures(rows: list[Row], failed: list[Row], models: list[str]) -> list[tuple[str, str]]:
    samples = sum(_size(row) for row in rows)
    figures = [(f"{len({row_name(row) for row in rows})}", "sets and tasks")]
    if len(models) > 1:
        figures.append((f"{len(models)}", "models"))
    figures.append((f"{samples:,}", "images"))
    if failed:
        figures.append((f"{len(failed)}", "not evaluated"))
    return [*figures, (format_seconds(sum(row.get("seconds", 0) for row in rows)), "in all")]


def _by_name(rows: list[Row]) -> dict[str, dict[str, Row]]:
    """Groups rows by set and task: name -> model -> row."""
    by_name: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_name.setdefault(row_name(row), {})[row["model"]] = row
    return by_name


def _table(rows: list[Row], models: list[str]) -> tuple[str, Any]:
    """A line for each set and task, with the main metric of each model."""
    lines = []
    for name, of_model in _by_name(rows).items():
        first = next(iter(of_model.values()))
        metric = main_metric(first)
        if metric is None:
            continue
        cells = [spelled(of_model[m], metric) if m in of_model else "–" for m in models]
        chance = first.get("chance")
        known = "–" if chance is None else f"{100 * chance:.1f}"
        lines.append((name, _words(metric), *cells, known, f"{_size(first):,}"))
    return "", [(2, ("set", "metric", *models, "chance", "images"), lines)]


def _other_metrics(rows: list[Row], models: list[str]) -> tuple[str, Any]:
    """A table for each set and task, with a line for each further metric."""
    tables = []
    for name, of_model in _by_name(rows).items():
        first = next(iter(of_model.values()))
        others = [key for key in first if f"{key}_low" in first and key != main_metric(first)]
        lines = [
            (_words(key), *(spelled(of_model.get(model, {}), key) for model in models))
            for key in others
        ]
        if lines:
            tables.append((1, (name, *models), lines))
    return "", tables


def _words(metric: str) -> str:
    return metric.replace("_", " ").replace(" to ", "→").replace("recall at ", "R@")


def _bars(rows: list[Row], models: list[str]) -> tuple[str, list[Bars]]:
    names = list(dict.fromkeys(row_name(row) for row in rows if main_metric(row) is not None))
    found = {(row["model"], row_name(row)): row for row in rows}
    nothing = (np.nan,) * 3

    def values(model: str, name: str) -> tuple[float, float, float]:
        row = found.get((model, name), {})
        metric = main_metric(row) if row else None
        if metric is None:
            return nothing
        value = float(row[metric])
        low, high = (float(row.get(f"{metric}_{end}", value)) for end in ("low", "high"))
        return value, low, high

    chance = [next((r.get("chance") for r in rows if row_name(r) == n), None) for n in names]
    level = ([np.nan if c is None else c for c in chance], "chance")
    series = {model: [values(model, name) for name in names] for model in models}
    known = any(c is not None for c in chance)
    return "", [Bars("Main metric of each set", names, series, level if known else None)]


def _details(row: Row, samples: dict[str, np.ndarray], several: bool) -> list[Section]:
    """Sections of one row: reliability, classes mistaken for each other, pictures."""
    name = row_name(row) + (f", {row['model']}" if several else "")
    sections = []
    if "confidence" in samples:
        sections.append(
            made_or_left_out(f"{name}: confidence", "charts", lambda: ("", [_reliability(samples)]))
        )
    if "predictions" in samples and "classnames" in samples:
        sections.append(made_or_left_out(f"{name}: classes", "lists", lambda: _confusions(samples)))
    if "mistakes" in samples:
        lead = "The wrong answers of which the model was surest."
        sections.append(
            made_or_left_out(f"{name}: mistakes", "quiz", lambda: (lead, _mistakes(samples)))
        )
    if "worst_ranks" in samples:
        lead = "The captions whose own picture came last, and that picture."
        sections.append(
            made_or_left_out(f"{name}: worst queries", "quiz", lambda: (lead, _worst(samples)))
        )
    return sections


def _reliability(samples: dict[str, np.ndarray]) -> Chart:
    bins = reliability(samples["confidence"], samples["metric/accuracy_top1"])
    ideal = Curve((0, 1), (0, 100), "as sure as right")
    found = Curve(bins.confidence.tolist(), (100 * bins.accuracy).tolist(), "measured")
    return Chart(
        "Accuracy by confidence", (found, ideal), is_percentage=True, across="confidence",
        has_markers=True,
    )  # fmt: skip


def _confusions(samples: dict[str, np.ndarray]) -> tuple[str, Any]:
    labels, predictions = samples["labels"], samples["predictions"]
    names = samples["classnames"].tolist()
    count = len(names)
    if count <= MOST_CLASSES:
        table = np.zeros((count, count), int)
        np.add.at(table, (labels, predictions), 1)
        lines = [(names[i], *(f"{n:,}" if n else "" for n in table[i])) for i in range(count)]
        return "Rows are true classes, columns are answers.", [(1, ("", *map(short, names)), lines)]
    wrong = labels != predictions
    pairs, times = np.unique(
        np.stack([labels[wrong], predictions[wrong]]), axis=1, return_counts=True
    )
    order = np.argsort(-times, kind="stable")[:PAIRS]
    lines = [
        (names[a], names[b], f"{n:,}")
        for (a, b), n in zip(pairs.T[order], times[order], strict=True)
    ]
    return "The classes most often mistaken.", [(2, ("true class", "answer", "images"), lines)]


def _mistakes(samples: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    names = samples["classnames"].tolist()
    cards = []
    for number, pixels in zip(samples["mistakes"], samples["mistake_pictures"], strict=True):
        truth = names[samples["labels"][number]]
        answer = names[samples["predictions"][number]]
        share = float(samples["confidence"][number])
        cards.append(
            {
                "image": pixels,
                "name": truth,
                "is_right": False,
                "guesses": [(answer, share, False)],
                "note": truth,
            }
        )
    return cards


def _worst(samples: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        {
            "image": pixels,
            "name": str(text),
            "is_right": False,
            "guesses": [(f"rank {int(rank):,}", 0.0, False)],
            "note": str(text),
        }
        for text, rank, pixels in zip(
            samples["worst_texts"], samples["worst_ranks"], samples["worst_pictures"], strict=True
        )
    ]
