"""Sections of the page from the run's own files: overview, curves, evaluation."""

import json
import math
import statistics
from collections.abc import Callable, Sequence

import clip_jax
from clip_jax.errors import UserError
from clip_jax.models.kinds import VitConfig
from clip_jax.report import page
from clip_jax.report.charts import DARK, LIGHT, Chart, Curve, draw
from clip_jax.report.gallery import gallery_sections
from clip_jax.report.inputs import RunFiles
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


def build_page(run: RunFiles) -> str:
    """The whole report as HTML."""
    name = run.workdir.absolute().name
    parts = [
        _header(run, name),
        _or_reason("Training", lambda: _curves(run)),
        _or_reason("Evaluation", lambda: _evaluation(run)),
        *gallery_sections(run, _or_reason),
        "<footer>Written by clip_jax from the run's own files; "
        "this page loads nothing from elsewhere.</footer>",
    ]
    return page.document(f"clip_jax report: {name}", "\n".join(parts))


def _or_reason(title: str, make: Callable[[], str]) -> str:
    """A section, or the reason for its omission: one missing piece must not cost the others."""
    try:
        return make()
    except (UserError, OSError) as error:
        return page.left_out(title, f"{error}.")


def _header(run: RunFiles, name: str) -> str:
    try:
        parameters, about = f"{run.clip.num_parameters:,}", _describe_model(run)
        model_name = run.clip.config.name
    except (UserError, OSError) as error:
        parameters, about = "", f"The model cannot be read: {error}."
        model_name = run.setting("model.name", "model")
    size = f", {parameters} parameters" if parameters else ""
    config = json.dumps(run.config, indent=1, ensure_ascii=False)
    details = (
        "<details><summary>The whole configuration</summary>\n"
        f"<pre>{page.text(config)}</pre></details>"
        if run.config
        else ""
    )
    return (
        f"<header>\n<h1>{page.text(name)}: {page.text(model_name)}{page.text(size)}</h1>\n"
        f'<p class="lead">{page.text(about)}</p>\n'
        f"{page.tiles(_tiles(run))}\n</header>\n"
        f'<section>\n<h2>Run</h2>\n<div class="card">{page.facts(_facts(run))}{details}</div>\n'
        "</section>"
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


def _tiles(run: RunFiles) -> list[str]:
    tiles = []
    rows = last_evaluation(run.evaluations)
    for metric, label in (
        ("accuracy_top1", "zero-shot top-1"),
        ("image_to_text_recall_at_1", "image→text R@1"),
        ("image_to_text_recall_at_10", "image→text R@10"),
    ):
        row = next((row for row in rows if metric in row), None)
        if row is not None:
            tiles.append(page.tile(f"{percentage(row[metric])} %", f"{label}, {task_name(row)}"))
    if run.metrics:
        last = run.metrics[-1]
        if "loss" in last:
            tiles.append(page.tile(f"{last['loss']:.3f}", "final loss"))
        tiles.append(page.tile(f"{last['step']:,}", "steps"))
        if "samples_seen" in last:
            tiles.append(page.tile(f"{last['samples_seen']:,}", "pairs seen"))
        if "seconds" in last:
            tiles.append(page.tile(format_seconds(last["seconds"]), "training time"))
        rate = _median_rate(run.metrics)
        if rate is not None:
            tiles.append(page.tile(f"{rate:,.0f}", "pairs per second (median)"))
    return tiles


def _median_rate(metrics: list[Row]) -> float | None:
    """Median samples per second, without the first row, which includes compilation."""
    rates = [row["samples_per_second"] for row in metrics if "samples_per_second" in row]
    return statistics.median(rates[1:] or rates) if rates else None


def _facts(run: RunFiles) -> list[tuple[str, str]]:
    setting = run.setting
    pairs = [
        ("data", f"{setting('data.path', '?')} ({setting('data.format', 'auto')})"),
        ("evaluated on", _evaluated_on(setting("evaluations") or ())),
        ("batch size", setting("batch_size")),
        ("loss", setting("loss")),
        ("peak learning rate", setting("optimizer.learning_rate")),
        ("warm-up steps", setting("optimizer.warmup_steps")),
        ("weight decay", setting("optimizer.weight_decay")),
        ("tokenizer", _tokenizer(run)),
        ("seed", setting("seed")),
        ("devices in training", _devices(run.metrics)),
        ("report made on", _this_machine()),
        ("versions", _versions()),
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


def _this_machine() -> str:
    import jax

    devices = jax.devices()
    return f"{len(devices)} × {devices[0].device_kind}"


def _versions() -> str:
    import flax
    import jax

    return f"clip_jax {clip_jax.__version__}, jax {jax.__version__}, flax {flax.__version__}"


def _curves(run: RunFiles) -> str:
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
    cards = [
        f'<div class="card"><h3>{page.text(chart.title)}</h3>\n'
        f"{page.themed_picture(draw(chart, LIGHT), draw(chart, DARK), chart.title + ' over steps')}"
        "</div>"
        for chart in charts
        if any(curve.steps for curve in chart.curves)
    ]
    return page.section("Training", "", page.grid("charts", cards))


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
        for metric, short in (
            ("accuracy_top1", "top-1"),
            ("image_to_text_recall_at_1", "R@1"),
            ("image_to_text_recall_at_10", "R@10"),
        ):
            # For parts of a dataset, the figure that moves most is enough.
            if metric in rows[0] and not (of_part and short == "R@1"):
                curve = _curve(rows, metric, f"{task} {short}{of_part}")
                curves.append(Curve(curve.steps, [100 * v for v in curve.values], curve.label))
    if not curves:
        return None
    title = "accuracy and recall (image→text)"
    return Chart(title, curves, is_percentage=True, has_markers=True)


def _evaluation(run: RunFiles) -> str:
    rows = last_evaluation(run.evaluations)
    columns = used_columns(rows)
    if not columns:
        raise UserError("evaluation.jsonl has no rows; config.evaluations says what is measured")
    # Classification and retrieval share no metric; separate tables have no empty cells.
    classification = [column for column in columns if column.group == "zero-shot"]
    retrieval = [column for column in columns if column.group != "zero-shot"]
    tables = [_metrics_table(rows, part) for part in (classification, retrieval) if part]
    lead = f"After step {rows[0].get('step', 0):,}, in per cent."
    return page.section("Evaluation", lead, page.grid("tables", tables))


def _metrics_table(rows: list[Row], columns: list[Column]) -> str:
    """A table with a line for each row that has one of the metrics."""
    groups: dict[str, list[str]] = {}
    for column in columns:
        groups.setdefault(column.group, []).append(column.name)
    lines = [
        (
            task_name(row),
            str(row.get("dataset", "")),
            [percentage(row.get(column.metric)) for column in columns],
            row_size(row),
        )
        for row in rows
        if any(column.metric in row for column in columns)
    ]
    return page.metrics_table(list(groups.items()), lines)
