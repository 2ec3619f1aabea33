"""Tables of docs/sets.md: the evaluation sets with what is published of OpenAI's models.

python benchmarks/sets_page.py
"""

import re
from pathlib import Path

from clip_jax.evaluation.prompts.published import published
from clip_jax.evaluation.suites.sets import EvaluationSet, all_sets, all_suites

PAGE = Path(__file__).resolve().parent.parent / "docs" / "sets.md"

Cells = dict[str, str]  # of a row, by the head of their column


def page(text: str) -> str:
    """Returns the page with its tables made anew, each below a comment that names it."""
    for name, rows in _tables().items():
        mark = f"<!-- table {name} -->\n\n"
        before, found, after = text.partition(mark)
        assert found, mark
        text = before + mark + _table(rows) + re.sub(r"\A(\|.*\n)*", "", after)
    return text


def _tables() -> dict[str, list[Cells]]:
    sets = [row for row in all_sets().values() if not _is_one_of_several_languages(row)]
    several = dict.fromkeys(name.partition("/")[0] for name in all_suites()["languages"])
    problems = ("compositional", "winoground", "winogavil")
    return {
        "suites": [_suite(name) for name in all_suites()],
        "zero_shot": [_cells(row) for row in sets if row.kind in ("zero_shot", "multilabel")],
        "retrieval": [_cells(row) for row in sets if row.kind == "retrieval"],
        "compositional": [_cells(row) for row in sets if row.kind in problems],
        "fairness": [_cells(row) for row in sets if row.kind == "fairness"],
        "languages": [_family(name) for name in several],
    }


def _is_one_of_several_languages(row: EvaluationSet) -> bool:
    return row.name in all_suites()["languages"]


def _table(rows: list[Cells]) -> str:
    """Returns a table of the columns that any row fills."""
    columns = [name for name in rows[0] if any(row[name] for row in rows)]
    lines = [columns, ["---"] * len(columns), *([row[name] for name in columns] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _suite(name: str) -> Cells:
    members = all_suites()[name]
    several = sorted({member.partition("/")[0] for member in members if "/" in member})
    shown = [member for member in members if "/" not in member]
    shown += [f"{family}/…" for family in several]
    return {"suite": f"`{name}`", "sets": str(len(members)), "members": ", ".join(shown)}


def _family(name: str) -> Cells:
    rows = [row for row in all_sets().values() if row.name.startswith(f"{name}/")]
    sizes = {row.samples[0] for row in rows}
    return {
        "sets": f"`{name}`",
        "languages": f"{len(rows)}: {' '.join(str(row.language) for row in rows)}",
        "images": f"{sizes.pop():,}" if len(sizes) == 1 else "50 for a class with a name",
    }


def _cells(row: EvaluationSet) -> Cells:
    return {
        "set": f"`{row.name}`",
        "classes": f"{row.classes:,}" if row.classes else "",
        "images": " or ".join(f"{number:,}" for number in row.samples),
        "captions": " or ".join(f"{number:,}" for number in row.texts),
        "metric": row.metric,
        "chance": "" if row.chance is None else f"{100 * row.chance:.3g}",
        "prompts": _prompts(row),
        "open_clip: B/32, L/14": _two(row.open_clip),
        "clip-benchmark: B/32, L/14": _two(row.clip_benchmark),
        "source": _source(row),
    }


def _two(figures: tuple[float, ...]) -> str:
    return ", ".join(f"{figure:.2f}" for figure in figures)


def _prompts(row: EvaluationSet) -> str:
    if row.kind not in ("zero_shot", "multilabel"):
        return ""
    known = published(row.prompts or row.name)
    if known is None:
        return "data"
    number = 80 if isinstance(known.templates, str) else len(known.templates)
    owner = "clip-benchmark" if known.source.startswith("clip-benchmark") else "OpenAI"
    return f"{owner}, {number}"


def _source(row: EvaluationSet) -> str:
    places = [f"`{row.repository}`"] if row.repository else []
    if row.tfds:
        places.append(f"TFDS `{row.tfds}` `{row.tfds_split or row.split}`")
    has_files = row.files or row.kind in ("winoground", "winogavil", "fairness")
    return "; ".join(places) or ("its own files" if has_files else "your folder")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), encoding="utf-8")
    print(f"written: {PAGE}")
