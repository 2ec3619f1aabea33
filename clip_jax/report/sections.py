"""Sections of the page from the run's own files: overview, curves, evaluation."""

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

import flax
import jax

import clip_jax
from clip_jax.errors import UserError
from clip_jax.models.kinds import VitConfig
from clip_jax.report.charts import Chart, Curve
from clip_jax.report.gallery import gallery_sections
from clip_jax.report.inputs import RunFiles
from clip_jax.report.page import Section, made_or_left_out, render
from clip_jax.training.log.metrics import format_seconds
from clip_jax.training.log.summary import (
    Column,
    Row,
    last_evaluation,
    percentage,
    row_size,
    task_name,
    used_columns,
)

METRICS = (
    ("accuracy_top1", "zero-shot top-1"),
    ("image_to_text_recall_at_1", "image→text R@1"),
    ("image_to_text_recall_at_10", "image→text R@10"),
)


def build_page(run: RunFiles) -> str:
    """The whole report as HTML."""
    name = run.workdir.absolute().name
    try:
        about = _describe_model(run)
        model = f"{run.clip.config.name}, {run.clip.num_parameters:,} parameters"
    except (UserError, OSError) as error:
        about = f"The model cannot be read: {error}."
        model = run.setting("model.name", "model")
    config = json.dumps(run.config, indent=1, ensure_ascii=False) if run.config else ""
    return render(
        name=f"clip_jax report: {name}",
        title=f"{name}: {model}",
        about=about,
        figures=_figures(run),
        sections=[
            Section("Run", "facts", body=(_facts(run), config)),
            made_or_left_out("Training", "charts", lambda: ("", _curves(run))),
            made_or_left_out("Evaluation", "metrics", lambda: _evaluation(run)),
            *gallery_sections(run),
        ],
    )


def _describe_model(run: RunFiles) -> str:
    config = run.clip.config
    vision, text = config.vision, config.text
    kind = {"vit": "ViT", "resnet": "ResNet"}.get(vision.kind, vision.kind)
    image = f"Image tower: {kind}, {config.image_size}×{config.image_size} pixels"
    if isinstance(vision, VitConfig):
        image += f", patches of {vision.patch_size}, {vision.layers} × {vision.width} wide"
    return (
        f"{image}. Text tower: {text.layers} × {text.width} wide, "
        f"{config.context_length} tokens of {config.vocab_size:,}. "
        f"Embeddings: {config.embed_dim} wide."
    )


def _figures(run: RunFiles) -> list[tuple[str, str]]:
    """(figure, label) pairs."""
    figures = []
    rows = last_evaluation(run.evaluations)
    for metric, name in METRICS:
        row = next((row for row in rows if metric in row), None)
        if row is not None:
            figures.append((f"{percentage(row[metric])} %", f"{name}, {task_name(row)}"))
    last = run.metrics[-1] if run.metrics else {}
    for key, label, spell in (
        ("loss", "final loss", "{:.3f}".format),
        ("step", "steps", "{:,}".format),
        ("samples_seen", "pairs seen", "{:,}".format),
        ("seconds", "training time", format_seconds),
    ):
        if key in last:
            figures.append((spell(last[key]), label))
    rate = _median_rate(run.metrics)
    if rate is not None:
        figures.append((f"{rate:,.0f}", "pairs per second (median)"))
    return figures


def _median_rate(metrics: list[Row]) -> float | None:
    """Median samples per second, without the first row, which includes compilation."""
    rates = [row["samples_per_second"] for row in metrics if "samples_per_second" in row]
    return statistics.median(rates[1:] or rates) if rates else None


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    setting, devices = run.setting, jax.devices()
    paths = setting("data.path") or ", ".join(part["path"] for part in setting("data.mixture", ()))
    pairs = [
        ("data", f"{paths or '?'} ({setting('data.format', 'auto')})"),
        ("evaluated on", _evaluated_on(setting("evaluations") or ())),
        ("batch size", setting("batch_size")),
        ("loss", setting("loss")),
        ("peak learning rate", setting("optimizer.learning_rate")),
        ("warm-up steps", setting("optimizer.warmup_steps")),
        ("weight decay", setting("optimizer.weight_decay")),
        ("tokenizer", _tokenizer(run)),
        ("seed", setting("seed")),
        ("devices in training", _devices(run.metrics)),
        ("report made on", f"{len(devices)} × {devices[0].device_kind}"),
        (
            "versions",
            f"clip_jax {clip_jax.__version__}, jax {jax.__version__}, flax {flax.__version__}",
        ),
    ]
    return [(name, str(value)) for name, value in pairs if value not in (None, "")]


def _evaluated_on(evaluations: Sequence[Row]) -> str:
    """Paths of the evaluations, or the names of tasks that bring their own data."""
    named = (each.get("data", {}).get("path") or each.get("task", "") for each in evaluations)
    return ", ".join(dict.fromkeys(named))


def _tokenizer(run: RunFiles) -> str:
    source = run.setting("tokenizer.source")
    if source == "captions":
        return (
            f"SentencePiece of the captions, {run.setting('tokenizer.vocab_size'):,} pieces at most"
        )
    return source or ""


def _devices(metrics: list[Row]) -> str:
    """Number of devices, inferred from the rates; "" if unknown."""
    row = next((row for row in metrics if row.get("samples_per_second_per_device")), None)
    if row is None:
        return ""
    return f"{row['samples_per_second'] / row['samples_per_second_per_device']:.0f}"


def _curves(run: RunFiles) -> list[Chart]:
    if not run.metrics:
        raise UserError("metrics.jsonl has no rows")
    charts = [
        Chart("loss", [_curve(run.metrics, "loss")], level=_chance_level(run)),
        Chart("learning rate", [_curve(run.metrics, "learning_rate")]),
        Chart("logit scale", [_curve(run.metrics, "logit_scale")]),
    ]
    quality = _quality_chart(run.evaluations)
    if quality is not None:
        charts.append(quality)
    return [chart for chart in charts if any(curve.steps for curve in chart.curves)]


def _curve(rows: list[Row], metric: str, label: str = "") -> Curve:
    points = [(row["step"], row[metric]) for row in rows if _is_finite(row.get(metric))]
    return Curve([step for step, _ in points], [value for _, value in points], label)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _chance_level(run: RunFiles) -> tuple[float, str] | None:
    """The softmax loss of a guessing model, ln of the batch size, with its name."""
    batch_size = run.setting("batch_size")
    if run.setting("loss") != "softmax" or not isinstance(batch_size, int) or batch_size < 2:
        return None
    return math.log(batch_size), f"guessing: ln {batch_size} = {math.log(batch_size):.2f}"


def _quality_chart(evaluations: list[Row]) -> Chart | None:
    """Accuracy and recall over steps, one curve per task and dataset."""
    series: dict[tuple[str, str, str], list[Row]] = {}
    for row in evaluations:
        series.setdefault(
            (str(row.get("task")), str(row.get("dataset")), task_name(row)), []
        ).append(row)
    curves = []
    for (_, dataset, task), rows in series.items():
        part = dataset.rpartition("/")[2].replace("_", " ") if dataset.count("/") > 1 else ""
        of_part = f", {part}" if part and len(series) > 2 else ""
        for metric, name in METRICS:
            short = name.split()[-1]
            # For parts of a dataset, the figure that moves most is enough.
            if metric in rows[0] and not (of_part and short == "R@1"):
                curve = _curve(rows, metric, f"{task} {short}{of_part}")
                curves.append(Curve(curve.steps, [100 * v for v in curve.values], curve.label))
    if not curves:
        return None
    title = "accuracy and recall (image→text)"
    return Chart(title, curves, is_percentage=True, has_markers=True)


def _evaluation(run: RunFiles) -> tuple[str, list[dict[str, Any]]]:
    rows = last_evaluation(run.evaluations)
    columns = used_columns(rows)
    if not columns:
        raise UserError("evaluation.jsonl has no rows; config.evaluations says what is measured")
    # Classification and retrieval share no metric; separate tables have no empty cells.
    classification = [column for column in columns if column.group == "zero-shot"]
    retrieval = [column for column in columns if column.group != "zero-shot"]
    tables = [_metrics_table(rows, part) for part in (classification, retrieval) if part]
    return f"After step {rows[0].get('step', 0):,}, in per cent.", tables


def _metrics_table(rows: list[Row], columns: list[Column]) -> dict[str, Any]:
    """A table with a line for each row that has one of the metrics."""
    groups = {column.group: [c for c in columns if c.group == column.group] for column in columns}
    lines = [
        {
            "task": task_name(row),
            "dataset": str(row.get("dataset", "")),
            "cells": [[percentage(row.get(c.metric)) for c in part] for part in groups.values()],
            "images": row_size(row),
        }
        for row in rows
        if any(column.metric in row for column in columns)
    ]
    return {
        "groups": {name: [c.name for c in part] for name, part in groups.items()},
        "lines": lines,
    }
