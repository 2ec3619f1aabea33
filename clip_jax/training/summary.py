"""The short table that ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clip_jax.training.metrics import format_seconds, read_rows

_LABELS = ("step", "task", "dataset", "model", "templates")


def format_rows(rows: list[dict[str, Any]]) -> str:
    """Evaluation rows as aligned text: a line a metric; shares in per cent."""
    lines = []
    for row in rows:
        for name, value in row.items():
            if name in _LABELS or not isinstance(value, int | float):
                continue
            shown = f"{100 * value:.1f} %" if isinstance(value, float) else f"{value:,}"
            lines.append((row["task"], row["dataset"], name, shown))
    if not lines:
        return "no evaluation was asked for"
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    return "\n".join(
        f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {value:>8}"
        for a, b, c, value in lines
    )


def print_summary(workdir: Path) -> None:
    """The last evaluation, the cost of the run, and the next commands to try."""
    metrics = read_rows(workdir / "metrics.jsonl")
    evaluations = read_rows(workdir / "evaluation.jsonl")
    newest = max((row["step"] for row in evaluations), default=None)
    print()
    print(format_rows([row for row in evaluations if row["step"] == newest]))
    if metrics:
        last = metrics[-1]
        print(
            f"\ntrained {last['step']:,} steps, {last['samples_seen']:,} pairs, in "
            f"{format_seconds(last['seconds'])}; final loss {last['loss']:.3f}"
        )
    print(f"\nmodel    {workdir / 'model'}")
    if (workdir / "report.html").exists():
        print(f"report   {workdir / 'report.html'}   (open it in a browser)")
    print(
        f"""
Next:
  python -m clip_jax.evaluate --model={workdir} --tasks=… --output=result.json
  python -c "import clip_jax; clip = clip_jax.load('{workdir}'); print(clip)"
  python -m clip_jax.train --config=configs/own_images.py --workdir=runs/mine
  --config.data.path=FOLDER"""
    )
