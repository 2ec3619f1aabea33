"""Rows of results in words: names, metrics and their intervals as people read them."""

from collections.abc import Sequence

from clip_jax.evaluation.results import Row

_NO_SHARES = ("_rank", "_loss")  # endings of metrics that are not in per cent


def short_names(models: Sequence[str]) -> dict[str, str]:
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


def size(row: Row) -> int:
    """Returns the number of images, or else of samples."""
    return int(row.get("num_images") or row.get("num_samples") or 0)


def spelled(row: Row, metric: str) -> str:
    """Formats a metric with its interval in per cent, such as "63.3 (62.9–63.7)"."""
    value, low, high = (row.get(f"{metric}{end}") for end in ("", "_low", "_high"))
    if value is None:
        return "–"
    factor, digits = (1, 2) if metric.endswith(_NO_SHARES) else (100, 1)
    value, *limits = (f"{factor * x:,.{digits}f}" for x in (value, low, high) if x is not None)
    return f"{value} ({'–'.join(limits)})" if limits else value


def metric_words(metric: str) -> str:
    """Returns a metric's name for people, such as "image→text R@1"."""
    return metric.replace("_", " ").replace(" to ", "→").replace("recall at ", "R@")
