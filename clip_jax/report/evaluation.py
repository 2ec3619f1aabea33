"""Page of an evaluation: figures with their intervals, bars over datasets, and what went wrong."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clip_jax.evaluation.disagreement import Disagreement
from clip_jax.evaluation.metrics.calibration import reliability
from clip_jax.evaluation.results import Results, Row, Samples
from clip_jax.evaluation.zero_shot import METRIC
from clip_jax.files.disk import write_text, writing
from clip_jax.report.bars import Bars
from clip_jax.report.charts import Chart, Curve
from clip_jax.report.comparison import difference_sections, examples_section
from clip_jax.report.page import Section, made_or_left_out, render, short
from clip_jax.report.result_words import (
    main_metric,
    metric_words,
    row_name,
    short_names,
    size,
    spelled,
)
from clip_jax.report.shifts import shift_sections
from clip_jax.training.log.metrics import format_seconds

MOST_CLASSES = 30  # of a confusion matrix; of more classes, only the pairs most often mistaken
PAIRS = 12
MOST_PICTURES = 400  # of a page, which would otherwise grow with its sets and models
FEWEST = 2  # of a section
REPORT = "report.html"


def write_evaluation_page(
    results: Results, disagreements: Sequence[Disagreement] | None = None
) -> Path:
    """Writes report.html beside the rows, and returns its path.

    Models are compared if there are `disagreements`, which may be empty.
    """
    assert results.folder is not None
    with writing(results.folder):
        write_text(results.folder / REPORT, build_evaluation_page(results, disagreements))
    return results.folder / REPORT


def build_evaluation_page(
    results: Results, disagreements: Sequence[Disagreement] | None = None
) -> str:
    """The whole page as HTML."""
    short_name = short_names([row["model"] for row in results.rows])
    named = [(row, {**row, "model": short_name[row["model"]]}) for row in results.rows]
    rows = [row for _, row in named if "error" not in row]
    failed = [row for _, row in named if "error" in row]
    models = list(dict.fromkeys(short_name.values()))
    compared = [] if disagreements is None else difference_sections(results, short_name)
    sections = []
    if any(main_metric(row) is not None for row in rows):
        sections = [
            made_or_left_out("Results", "lists", lambda: _table(rows, models)),
            made_or_left_out("Over datasets", "charts", lambda: _bars(rows, models)),
        ]
    sections += [
        *shift_sections(results, short_name),
        *compared[:1],
        *(examples_section(each, short_name) for each in disagreements or ()),
    ]
    if failed:
        lines = [(row["model"], f"{row['task']}, {row['dataset']}", row["error"]) for row in failed]
        sections.append(
            Section("Not evaluated", "lists", body=[(3, ("model", "set", "why"), lines)])
        )
    for name in _by_name(rows):
        details = [
            (row, results.samples(original)) for original, row in named if row_name(row) == name
        ]
        sections += _details(name, details, len(models) > 1)
    sections.append(
        made_or_left_out("Other metrics", "lists", lambda: _other_metrics(rows, models))
    )
    sections += compared[1:]
    shown = models[0] if len(models) == 1 else f"{len(models)} models"
    return render(
        name=f"clip_jax evaluation: {shown}",
        title=f"Evaluation of {shown}",
        about="Shares in per cent; the 95 % interval is of the images drawn, not of training.",
        figures=_figures(rows, failed, models),
        sections=_within_bounds(sections),
    )


def _within_bounds(sections: Sequence[Section]) -> list[Section]:
    """Shows fewer pictures a section if there are many sections of them."""
    galleries = sum(section.kind == "answers" for section in sections)
    most = max(FEWEST, MOST_PICTURES // max(1, galleries))
    return [
        dataclasses.replace(each, body=each.body[:most]) if each.kind == "answers" else each
        for each in sections
    ]


def _figures(rows: list[Row], failed: list[Row], models: list[str]) -> list[tuple[str, str]]:
    samples = sum(size(row) for row in rows)
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
    has_chance = any("chance" in row for row in rows)
    lines = []
    for name, of_model in _by_name(rows).items():
        first = next(iter(of_model.values()))
        metric = main_metric(first)
        if metric is None:
            continue
        cells = [spelled(of_model[m], metric) if m in of_model else "–" for m in models]
        chance = first.get("chance")
        guessed = ["–" if chance is None else f"{100 * chance:.1f}"] if has_chance else []
        lines.append((name, metric_words(metric), *cells, *guessed, f"{size(first):,}"))
    titles = ("set", "metric", *models, *(["chance"] if has_chance else []), "images")
    return "", [(2, titles, lines)]


def _other_metrics(rows: list[Row], models: list[str]) -> tuple[str, Any]:
    """A table for each set and task, with a line for each further metric."""
    tables = []
    for name, of_model in _by_name(rows).items():
        first = next(iter(of_model.values()))
        others = [key for key in first if f"{key}_low" in first and key != main_metric(first)]
        lines = [
            (metric_words(key), *(spelled(of_model.get(model, {}), key) for model in models))
            for key in others
        ]
        if lines:
            tables.append((1, (name, *models), lines))
    return "", tables


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


def _details(name: str, rows: Sequence[tuple[Row, Samples]], several: bool) -> Iterator[Section]:
    """Yields sections of one set: reliability, classes mistaken for each other, pictures."""
    sure = [(row["model"], samples) for row, samples in rows if "confidence" in samples]
    if sure:
        yield made_or_left_out(f"{name}: confidence", "charts", lambda: ("", [_reliability(sure)]))
    for row, samples in rows:
        title = f"{name}, {row['model']}" if several else name
        if "predictions" in samples and "classnames" in samples:
            made = functools.partial(confusions, samples)
            yield made_or_left_out(f"{title}: classes", "lists", made)
        if "mistakes" in samples:
            made = functools.partial(_mistakes, samples)
            yield made_or_left_out(f"{title}: mistakes", "answers", made)
        if "worst_ranks" in samples:
            made = functools.partial(_worst, samples)
            yield made_or_left_out(f"{title}: worst queries", "answers", made)


def _reliability(models: Sequence[tuple[str, Samples]]) -> Chart:
    curves = []
    for model, samples in models:
        bins = reliability(samples["confidence"], samples[f"{METRIC}accuracy_top1"])
        percent = (100 * bins.accuracy).tolist()
        curves.append(Curve(bins.confidence.tolist(), percent, model))
    return Chart(
        "Accuracy by confidence", (*curves, Curve((0, 1), (0, 100), "as sure as right")),
        is_percentage=True, across="confidence", has_markers=True,
    )  # fmt: skip


def confusions(samples: Samples) -> tuple[str, Any]:
    """Returns what is said of classes taken for each other, and their tables."""
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


def _mistakes(samples: Samples) -> tuple[str, Any]:
    names = samples["classnames"].tolist()
    return "The wrong answers of which the model was surest.", [
        {
            "image": pixels,
            "answers": [(names[samples["predictions"][n]], float(samples["confidence"][n]), False)],
            "what": "True label",
            "note": names[samples["labels"][n]],
        }
        for n, pixels in zip(samples["mistakes"], samples["mistake_pictures"], strict=True)
    ]


def _worst(samples: Samples) -> tuple[str, Any]:
    lead = "The captions whose own picture came last, and that picture."
    return lead, [
        {
            "image": pixels,
            "answers": [(f"rank {int(rank):,}", None, False)],
            "what": "Caption",
            "note": str(text),
        }
        for text, rank, pixels in zip(
            samples["worst_texts"], samples["worst_ranks"], samples["worst_pictures"], strict=True
        )
    ]
