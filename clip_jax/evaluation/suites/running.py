"""Evaluation of opened sets by the evaluators of `clip_jax.evaluation.tasks`."""

from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import AnyEmbedders
from clip_jax.evaluation.suites.opening import OpenedSet
from clip_jax.evaluation.tasks import TASKS, Row, run_task


def evaluate_set(embedders: AnyEmbedders, opened: OpenedSet) -> list[Row]:
    """Returns the rows of a set, as `run_task` does, with the set's name, split and main metric.

    Raises UserError if no task of `TASKS` has the name of the set's kind, or as the task does.
    """
    if opened.set.kind not in TASKS:
        known = ", ".join(TASKS)
        raise UserError(f"{opened.set.name}: no task evaluates {opened.set.kind!r} ({known})")
    return [named_row(opened, row) for row in run_task(opened.set.kind, embedders, opened.data)]


def named_row(opened: OpenedSet, row: Row) -> Row:
    """Returns a row of results with the name of its set in place of a path.

    The row also gets `split`, `metric` (the name of the main metric) and `chance` (its value by
    guessing).
    """
    chosen = opened.set
    # A row of one group keeps what follows the path, and has no worst group.
    name = chosen.name + row["dataset"].removeprefix(opened.data.path)
    metric = chosen.metric.removeprefix("worst_group_") if "group" in row else chosen.metric
    named = {"dataset": name, "split": chosen.split, "metric": metric}
    return {**row, **named, **({} if chosen.chance is None else {"chance": chosen.chance})}
