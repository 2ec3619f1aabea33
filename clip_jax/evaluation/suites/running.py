"""Evaluation of opened sets by the evaluators of `clip_jax.evaluation.tasks`."""

from clip_jax.evaluation.suites.opening import OpenedSet
from clip_jax.evaluation.tasks import Row


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
