"""Sections of a page on how the models of an evaluation differ."""

from collections.abc import Mapping, Sequence
from typing import Any

from clip_jax.evaluation.comparison import differences
from clip_jax.evaluation.disagreement import Disagreement
from clip_jax.evaluation.results import Results
from clip_jax.report.page import Section, made_or_left_out
from clip_jax.report.result_words import metric_words, row_name, short_names

_IMAGES = "{total:,} in all; the surest wrong answers of {worse} first."
_QUERIES = "{total:,} captions in all; those whose ranks differ most first."


def comparison_sections(
    results: Results, disagreements: Sequence[Disagreement] = ()
) -> list[Section]:
    """Sections on the differences of the models, and the examples on which two disagree."""
    short_name = short_names([row["model"] for row in results.rows])
    table = made_or_left_out("Differences", "lists", lambda: _table(results, short_name))
    return [table, *(_examples(each, short_name) for each in disagreements)]


def _table(results: Results, short_name: Mapping[str, str]) -> tuple[str, Any]:
    lines = []
    for row in differences(results):
        low, high = (f"{100 * row[f'difference_{end}']:+.1f}" for end in ("low", "high"))
        exact = row.get("mcnemar_p_value")
        lines.append(
            (
                row_name(row),
                metric_words(row["metric"]),
                f"{short_name[row['model']]} − {short_name[row['against']]}",
                f"{100 * row['difference']:+.1f} ({low} to {high})",
                f"{row['p_value']:.2g}",
                "–" if exact is None else f"{exact:.2g}",
            )
        )
    titles = ("set", "metric", "models", "difference", "p, bootstrap", "p, McNemar")
    return "In points, on the same samples; p-values are not adjusted.", [(3, titles, lines)]


def _examples(found: Disagreement, short_name: Mapping[str, str]) -> Section:
    better, worse = (short_name[row["model"]] for row in (found.better, found.worse))
    if found.is_retrieval:
        title, lead, what = f"{better} ranks higher than {worse}", _QUERIES, "Caption"
    else:
        title, lead, what = f"{better} is right and {worse} wrong", _IMAGES, "True label"
    cards = [
        {
            "image": example.picture,
            "answers": [
                _answer(better, example.better, is_better=True),
                _answer(worse, example.worse, is_better=False),
            ],
            "what": what,
            "note": example.text,
        }
        for example in found.examples
    ]
    lead = lead.format(total=found.total, worse=worse)
    return Section(f"{row_name(found.better)}: {title}", "answers", lead, cards)


def _answer(
    model: str, answer: tuple[str, float], *, is_better: bool
) -> tuple[str, float | None, bool]:
    """Returns an answer as the page shows it: (text, share or None, whether it is the better)."""
    label, value = answer
    if label:
        return f"{model}: {label}", value, is_better
    return f"{model}: rank {value:,.0f}", None, is_better
