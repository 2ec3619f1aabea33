"""Choice of prompts: planted good ones, honest figures, learned weights against their optimum."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.classification import top_k_hits
from clip_jax.evaluation.prompt_comparison import CHOSEN, check_choice, choose_prompts
from clip_jax.evaluation.prompt_search import (
    Trial,
    best_weights,
    forward_weights,
    held_out,
    learned_weights,
    make_trial,
    prompt_sums,
    select_forward,
)
from clip_jax.evaluation.zero_shot import zero_shot_classifier

CLASSES = ["cat", "dog", "owl", "bee", "ant", "elk"]
WIDTH = 32


def direction(text: str) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    return np.random.default_rng(seed).normal(size=WIDTH)


def embed_text(texts: Sequence[str]) -> np.ndarray:
    """A direction of the class, that hides in noise unless the template is a good one."""
    rows = []
    for text in texts:
        share = 1.0 if "good" in text else 0.15
        name = next(name for name in CLASSES if name in text)
        rows.append(share * direction(name) + (1 - share) * direction(text))
    return np.asarray(rows, np.float32)


def images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count)
    of_class = np.stack([direction(name) for name in CLASSES])
    embeds = of_class[labels] + 2.0 * rng.normal(size=(count, WIDTH))
    return (embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(np.float32), labels


def sums_of(templates: Sequence[str]) -> np.ndarray:
    prompts = [[[t.replace("{}", name)] for name in CLASSES] for t in templates]
    return prompt_sums(embed_text, prompts)


def trial(templates: Sequence[str], count: int = 200, seed: int = 0, scale: float = 20) -> Trial:
    return make_trial(sums_of(templates), *images(count, seed), scale)


BAD = [f"bad number {n} of a {{}}" for n in range(50)]


def test_sums_give_the_classifier_and_each_prompt_is_embedded_once() -> None:
    asked: list[str] = []

    def embed(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return embed_text(texts)

    classes = [("cat", "the cat"), ("dog",)]
    prompts = [[[f"{t} {name}" for name in names] for names in classes] for t in ("a", "b", "a")]
    sums = prompt_sums(embed, prompts)
    assert len(asked) == len(set(asked)) == 6
    both = sums[:2].sum(0)
    expected = zero_shot_classifier(embed_text, classes, ["a {}", "b {}"])
    np.testing.assert_allclose(both.T / np.linalg.norm(both, axis=1), expected, atol=1e-6)


def test_a_trial_judges_as_numpy_does() -> None:
    found = trial(BAD[:3], 60)
    weights = np.array([0.2, 0.5, 0.3])
    columns = np.tensordot(weights, np.asarray(found.sums, np.float64), 1)
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    scores = np.asarray(found.images) @ columns.T
    labels = np.asarray(found.labels)
    judged = found.judge(weights)
    np.testing.assert_array_equal(judged.hits, top_k_hits(scores, labels, 1))
    losses = -log_softmax(20 * scores, 1)[np.arange(60), labels]
    np.testing.assert_allclose(judged.losses, losses, rtol=1e-4)
    # Classes with the same prompts tie, and share the hit.
    same = make_trial(np.ones((1, 4, WIDTH), np.float32), np.asarray(found.images), labels % 4)
    np.testing.assert_allclose(same.judge(np.ones(1)).hits, 0.25)


def test_a_good_template_among_fifty_bad_ones_is_found() -> None:
    names = [*BAD[:31], "a good {}", *BAD[31:]]
    found, used = trial(names), np.ones(200, bool)
    assert select_forward(found, used)[0][0] == 31
    assert best_weights(found, used).argmax() == 31
    weights = learned_weights(found, used)
    assert weights.argmax() == 31
    assert weights.sum() == pytest.approx(1)
    references = {"openai": trial(BAD[:20]).judge(np.ones(20))}
    choice = choose_prompts(found, names, references, learn=False)
    assert choice.chosen[0] == 31
    # On other images too, and its interval leaves 0 out.
    other = trial(names, 400, seed=9)
    test = check_choice(other, choice, {"openai": trial(BAD[:20], 400, 9).judge(np.ones(20))})
    gain = {row["prompts"]: row for row in test["differences"]}
    assert gain[CHOSEN]["difference_low"] > 0.1
    assert gain[CHOSEN]["mcnemar_p_value"] < 1e-6


@pytest.mark.parametrize("count", [150, 20])  # of few images, many candidates are equally accurate
def test_forward_selection_adds_what_helps_and_stops(count: int) -> None:
    found, used = trial(BAD[:8], count), np.arange(count) % 3 > 0
    path = select_forward(found, used)
    accuracies = [accuracy for _, accuracy in path]
    assert accuracies == sorted(accuracies)
    assert len({n for n, _ in path}) == len(path)

    def score(chosen: Sequence[int]) -> tuple[float, float]:
        return found.judge(np.isin(range(8), chosen) * 1.0).mean(used)

    chosen: list[int] = []
    for number, _ in path:
        left = set(range(8)) - set(chosen)
        assert max(left, key=lambda n: score([*chosen, n])) == number
        chosen.append(number)
    assert all(score([*chosen, n]) <= score(chosen) for n in set(range(8)) - set(chosen))


def test_held_out_figures_are_not_optimistic() -> None:
    """Of templates that say nothing, the best one in sample is above chance, and held out it is
    not."""
    rng = np.random.default_rng(0)
    in_sample, honest = [], []
    for seed in range(12):
        sums = rng.normal(size=(40, 4, 8)).astype(np.float32)
        embeds = rng.normal(size=(60, 8)).astype(np.float32)
        found = make_trial(sums, embeds, np.random.default_rng(seed).integers(0, 4, 60))
        in_sample.append(select_forward(found, np.ones(60, bool))[-1][1])
        honest.append(held_out(found, forward_weights).hits.mean())
    assert np.mean(in_sample) > 0.4
    assert abs(np.mean(honest) - 0.25) < 3 * (0.25 * 0.75 / (12 * 60)) ** 0.5


def test_learned_weights_are_the_optimum() -> None:
    found, used = trial(["a good {}", *BAD[:3]], 120), np.arange(120) < 80
    sums, rows = np.asarray(found.sums, np.float64), np.flatnonzero(used)
    labels = np.asarray(found.labels)[rows]

    def objective(values: np.ndarray) -> float:
        logits, scale = values[:-1], 20 * np.exp(values[-1])
        columns = np.tensordot(softmax(logits), sums, 1)
        columns /= np.linalg.norm(columns, axis=1, keepdims=True)
        logs = log_softmax(scale * np.asarray(found.images, np.float64)[rows] @ columns.T, 1)
        return -logs[range(80), labels].mean() - log_softmax(logits).sum() / 80

    options = {"maxiter": 20_000, "maxfev": 20_000}
    best = minimize(objective, np.zeros(5), method="Nelder-Mead", tol=1e-10, options=options).x
    expected = softmax(best[:-1])
    np.testing.assert_allclose(learned_weights(found, used), expected, atol=2e-3)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="no images"):
        make_trial(sums_of(BAD[:1]), np.zeros((0, WIDTH), np.float32), np.zeros(0, int))
    with pytest.raises(UserError, match="needs at least 2"):
        held_out(trial(BAD[:2], 1), forward_weights)
