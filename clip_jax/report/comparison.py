"""Sections of a page on how the models of an evaluation differ."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evaluation.comparison import differences
from clip_jax.evaluation.disagreement import Disagreement, Example
from clip_jax.evaluation.results import Results, Row
from clip_jax.report.page import Section
from clip_jax.report.result_words import main_metric, metric_words, row_name

_IMAGES = "{total:,} in all; the surest wrong answers of {worse} first."
_QUERIES = "{total:,} captions in all; those whose ranks differ most first."


def difference_sections(results: Results, short_name: Mapping[str, str]) -> list[Section]:
    """Sections on the differences of the models: by the main metric of each set, and by others."""
    lead = "In points, on the same samples; p-values are not adjusted."
    main_of = {(row["task"], row["dataset"]): main_metric(row) for row in results.rows}
    main, others = [], []
    for _, same in itertools.groupby(differences(results), key=_rows_of):
        found = list(same)
        metrics = [row["metric"] for row in found]
        named = main_of[found[0]["task"], found[0]["dataset"]]
        # The accuracy of the worst group, for one, is no mean of samples, and has no difference.
        first = metrics.index(named) if named in metrics else 0
        main.append(found.pop(first))
        others += found
    return [
        Section(title, "lists", lead, [_table(rows, short_name)])
        for title, rows in (("Differences", main), ("Other differences", others))
    ]


def _rows_of(row: Row) -> tuple[str, ...]:
    return tuple(row[key] for key in ("task", "dataset", "model", "against"))


def _table(rows: Sequence[Row], short_name: Mapping[str, str]) -> Any:
    lines = []
    for row in rows:
        exact = row.get("mcnemar_p_value")
        low, high = (_points(row[f"difference_{end}"]) for end in ("low", "high"))
        lines.append(
            (
                row_name(row),
                metric_words(row["metric"]),
                f"{short_name[row['model']]} − {short_name[row['against']]}",
                f"{_points(row['difference'])} ({low} to {high})",
                f"{row['p_value']:.2g}",
                "–" if exact is None else f"{exact:.2g}",
            )
        )
    return 3, ("set", "metric", "models", "difference", "p, bootstrap", "p, McNemar"), lines


def _points(share: float) -> str:
    return f"{100 * share:+.1f}".replace("-", "−")


def examples_section(found: Disagreement, short_name: Mapping[str, str]) -> Section:
    """The section of the examples on which one model is better than another."""
    better, worse = (short_name[row["model"]] for row in (found.better, found.worse))
    if found.is_retrieval:
        title, lead, what = f"{better} ranks higher than {worse}", _QUERIES, "Caption"
    else:
        title, lead, what = f"{better} is right and {worse} wrong", _IMAGES, "True label"
    lead = lead.format(total=found.total, worse=worse)
    body = cards(found.examples, better, worse, what)
    return Section(f"{row_name(found.better)}: {title}", "answers", lead, body)


def cards(
    examples: Sequence[Example], better: str, worse: str, what: str = "True label"
) -> list[dict[str, Any]]:
    """Returns examples as the page shows them, with the answers of two models so called."""
    return [
        {
            "image": example.picture,
            "answers": [
                _answer(better, example.better, is_better=True),
                _answer(worse, example.worse, is_better=False),
            ],
            "what": what,
            "note": example.text,
        }
        for example in examples
    ]


def _answer(
    model: str, answer: tuple[str, float], *, is_better: bool
) -> tuple[str, float | None, bool]:
    """Returns an answer as the page shows it: (text, share or None, whether it is the better)."""
    label, value = answer
    if label:
        return f"{model}: {label}", value, is_better
    return f"{model}: rank {value:,.0f}", None, is_better
