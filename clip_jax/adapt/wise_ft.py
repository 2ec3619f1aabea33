"""The line from a model to its adapted self: WiSE-FT (Wortsman et al. 2022), section 3."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from clip_jax.adapt.parts import ACCURACY, Judge, Part, Row, metrics
from clip_jax.adaptation.folder import unmerged
from clip_jax.adaptation.tree import Adapter, flat
from clip_jax.evaluation.soup import soup

PARTS = tuple(step / 10 for step in range(11))  # of the way, as in the paper


def line_judge(
    adapter: Adapter, params: Any, judge: Callable[[Adapter], Judge]
) -> Callable[[float], Judge] | None:
    """Returns the judge of the model at each part of the way.

    None if the adapter is more than other parameters and LoRA, so that there is no line.
    """
    if unmerged(adapter, params) or any(path.endswith("_magnitude") for path in adapter):
        return None
    return lambda part: judge(jax.device_put(part_of_way(adapter, params, part)))


def part_of_way(adapter: Adapter, params: Any, part: float) -> Adapter:
    """Returns the adapter that makes the parameters (1 − part)·θ₀ + part·θ₁ of θ₀, `params`.

    They are of a model whose blocks are separate.
    """
    start = {path: leaf for path, leaf in flat(params).items() if path in adapter}
    end = {path: leaf for path, leaf in adapter.items() if path in start}
    mixed: Adapter = soup([start, end], (1 - part, part))
    # An update a·b is linear in b.
    updates = {path: leaf for path, leaf in adapter.items() if path not in start}
    return mixed | {x: part * leaf if x.endswith("_b") else leaf for x, leaf in updates.items()}


def curve(
    judge_part: Callable[[float], Judge], train: Part, validates: np.ndarray, test: Part | None
) -> list[Row]:
    """Returns the accuracies along the line, of validation images and of those to test."""
    found = []
    for part in PARTS:
        judge = judge_part(part)
        row = {"part": part, "validation": metrics(*judge(train, validates))[0][ACCURACY]}
        if test is not None:
            row["test"] = metrics(*judge(test, None))[0][ACCURACY]
        found.append(row)
    return found
