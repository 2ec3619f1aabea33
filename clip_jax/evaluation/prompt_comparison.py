"""Figures of the prompt laboratory: candidates, ensembles, choices, and the test of a choice."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from clip_jax.evaluation.metrics.paired import mcnemar_test, paired_difference
from clip_jax.evaluation.metrics.rows import mean_estimate, metrics_row
from clip_jax.evaluation.prompt_search import (
    Choose,
    Judged,
    Trial,
    best_weights,
    forward_weights,
    held_out,
    learned_weights,
    select_forward,
)

CHOSEN, LEARNED = "chosen", "learned weights"


class Choice(NamedTuple):
    """Prompts that were chosen on validation images, and the figures of them.

    Attributes:
      chosen: numbers of the candidates of forward selection, in the order of their addition.
      weights: name of an ensemble -> weights (K,) of the candidates, from all the images.
      figures: "ensembles", "differences" from the reference, "candidates", "selection": rows.
    """

    chosen: list[int]
    weights: dict[str, np.ndarray]
    figures: dict[str, list[dict[str, Any]]]


def choose_prompts(
    trial: Trial, names: Sequence[str], references: Mapping[str, Judged], *, learn: bool
) -> Choice:
    """Chooses prompts on validation images, and measures the choice without optimism.

    Args:
      trial: K candidates and the images.
      names: of the candidates.
      references: name -> the same images judged by other prompts; differences are from the first.
      learn: whether weights are learned too.
    """
    choices: dict[str, Choose] = {"best alone": best_weights, CHOSEN: forward_weights}
    if learn:
        choices[LEARNED] = learned_weights
    used = np.ones(len(trial.labels), bool)
    count = len(names)
    fixed = {**references, "all candidates": trial.judge(np.ones(count))}
    honest = {name: held_out(trial, choose) for name, choose in choices.items()}
    path = select_forward(trial, used)
    figures = {
        "ensembles": [
            *(_row(name, judged, measured="on all images") for name, judged in fixed.items()),
            *(_row(name, judged, measured="held out") for name, judged in honest.items()),
        ],
        "differences": differences({**fixed, **honest}),
        "candidates": [
            {
                "prompts": name,
                **metrics_row({"accuracy_top1": judged.hits}),
                "log_loss": float(judged.losses.mean()),
            }
            for name, judged in zip(names, trial.judge_each(), strict=True)
        ],
        "selection": [{"prompts": names[n], "accuracy_top1": accuracy} for n, accuracy in path],
    }
    weights = {name: choose(trial, used) for name, choose in choices.items()}
    return Choice([number for number, _ in path], weights, figures)


def check_choice(
    trial: Trial, choice: Choice, references: Mapping[str, Judged]
) -> dict[str, list[dict[str, Any]]]:
    """Measures a choice once on test images: the rows "ensembles" and "differences"."""
    found = {**references, **{name: trial.judge(w) for name, w in choice.weights.items()}}
    return {
        "ensembles": [_row(name, judged) for name, judged in found.items()],
        "differences": differences(found),
    }


def differences(judged: Mapping[str, Judged]) -> list[dict[str, Any]]:
    """Compares ensembles with the first, on the same images: accuracy, its interval, p-values."""
    (against, reference), *others = judged.items()
    rows = []
    for name, each in others:
        found = paired_difference(each.hits, reference.hits)
        rows.append(
            {
                "prompts": name,
                "against": against,
                "difference": found.difference,
                "difference_low": found.low,
                "difference_high": found.high,
                "p_value": found.p_value,
                "mcnemar_p_value": mcnemar_test(each.hits, reference.hits),
            }
        )
    return rows


def _row(name: str, judged: Judged, **facts: Any) -> dict[str, Any]:
    metrics = {"accuracy_top1": judged.hits, "log_loss": mean_estimate(judged.losses)}
    return {"prompts": name, **facts, **metrics_row(metrics)}
