"""Helpers to write a config file's `sweep()`, which defines many runs of one config.

A config file may export `sweep()`, which returns a list of override dicts (dotted config key to
value), one dict per run:

    from clip_jax.sweep import cross, grid, zipped

    def sweep():
        return grid(**{"optimizer.learning_rate": [5e-4, 1e-3], "batch_size": [128, 256]})

Lists add up with `+`. `python -m clip_jax.sweep` runs them.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from clip_jax.errors import UserError

Overrides = dict[str, Any]
Range = Callable[[float], Any]  # a number in [0, 1) -> a value

SIGNIFICANT_DIGITS = 4  # of random values: enough for any search, and short in run names


def cross(*parts: Sequence[Overrides]) -> list[Overrides]:
    """Returns every combination of one dict from each part; the last part varies fastest."""
    return [
        {key: value for part in combination for key, value in part.items()}
        for combination in itertools.product(*parts)
    ]


def grid(**values: Sequence[Any]) -> list[Overrides]:
    """Returns every combination of the keys' values; the last key varies fastest."""
    return cross(*([{key: v} for v in _as_list("grid", key, vs)] for key, vs in values.items()))


def zipped(**values: Sequence[Any]) -> list[Overrides]:
    """Zips the keys' values: run i takes the i-th value of every key.

    Raises UserError if the keys have different numbers of values.
    """
    lists = {key: _as_list("zipped", key, vs) for key, vs in values.items()}
    if len({len(vs) for vs in lists.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(vs)}" for key, vs in lists.items())
        raise UserError(f"zipped: every key needs the same number of values; {lengths}")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def random_search(n: int, seed: int, **ranges: Range) -> list[Overrides]:
    """Draws `n` different settings from `log_uniform`, `uniform` or `choice` ranges.

    A larger `n` adds runs without changing the earlier ones. Each key has its own random stream,
    so that a new key does not redraw the others. Repeated settings are skipped.
    """
    for key, draw in ranges.items():
        if not callable(draw):
            raise UserError(
                f"random_search: {key}={draw!r} is not a range; use log_uniform(low, high), "
                "uniform(low, high) or choice([...])"
            )
    streams = {key: random.Random(f"{seed}:{key}") for key in ranges}
    settings: list[Overrides] = []
    for _ in range(100 * n):
        if len(settings) == n:
            break
        setting = {key: draw(streams[key].random()) for key, draw in ranges.items()}
        if setting not in settings:
            settings.append(setting)
    if len(settings) < n:
        raise UserError(
            f"random_search: n={n}, but the ranges gave only {len(settings)} different settings"
        )
    return settings


def uniform(low: float, high: float) -> Range:
    """Uniform range of numbers; values keep four significant digits."""
    if not low < high:
        raise UserError(f"uniform({low!r}, {high!r}): the first number must be below the second")
    return lambda u: _round(low + u * (high - low), low, high)


def log_uniform(low: float, high: float) -> Range:
    """Log-uniform range of positive numbers, such as learning rates."""
    if not 0 < low < high:
        raise UserError(f"log_uniform({low!r}, {high!r}): needs 0 < first < second")
    return lambda u: _round(low * math.exp(u * math.log(high / low)), low, high)


def choice(values: Sequence[Any]) -> Range:
    """Range that draws one of `values` with equal probability."""
    options = _as_list("choice", "values", values)
    return lambda u: options[int(u * len(options))]


def _as_list(helper: str, key: str, values: Any) -> list[Any]:
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        raise UserError(f"{helper}: {key}={values!r} is not a list of values")
    if not (listed := list(values)):
        raise UserError(f"{helper}: {key} has no values; give at least one")
    return listed


def _round(value: float, low: float, high: float) -> float:
    return min(max(float(f"{value:.{SIGNIFICANT_DIGITS}g}"), low), high)
