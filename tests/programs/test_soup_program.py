"""`python -m clip_jax.soup`: the model that it writes is the one that it says it chose."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from benchmark_sets import COLOURS, square
from programs import assert_mistake, run_program

import clip_jax
from clip_jax.clip import Clip
from clip_jax.evaluation.soup import soup

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for colour in COLOURS:
        (root / colour).mkdir()
        for number in range(3):
            (root / colour / f"{number}.png").write_bytes(square(colour, (9 + number, 9)))
    return root


@pytest.fixture(scope="module")
def models(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run's model, and two others of its architecture."""
    first, folder = clip_jax.load(tiny_run / "model"), tmp_path_factory.mktemp("models")
    names = [str(tiny_run / "model")]
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        params = jax.tree.map(
            lambda x, rng=rng: x + 0.3 * rng.standard_normal(np.shape(x)).astype(x.dtype),
            first.params,
        )
        Clip(first.config, params, first.tokenizer).save(folder / str(seed))
        names.append(str(folder / str(seed)))
    return names


def made(output: Path, *words: str) -> tuple[dict[str, Any], Any]:
    ended = run_program("clip_jax.soup", f"--output={output}", *words)
    assert ended.returncode == 0, ended.stderr
    return json.loads((output / "soup.json").read_text()), clip_jax.load(output).params


def assert_is(found: Any, names: list[str], weights: list[float] | None = None) -> None:
    expected = soup([clip_jax.load(name).params for name in names], weights)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_uniform(models: list[str], tmp_path: Path) -> None:
    _, found = made(tmp_path / "out", f"--model={','.join(models)}", "--weights=1,2,1")
    assert_is(found, models, [1, 2, 1])


def test_the_way_between_two(models: list[str], photos: Path, tmp_path: Path) -> None:
    record, found = made(
        tmp_path / "out", f"--model={models[0]},{models[1]}", "--method=interpolate", "--steps=3",
        f"--data={photos}", "--templates=none",
    )  # fmt: skip
    parts, accuracies = zip(*record["curve"], strict=True)
    assert parts == pytest.approx((0, 1 / 3, 2 / 3, 1))
    best = parts[int(np.argmax(accuracies))]
    assert record["part"] == pytest.approx(best)
    assert best != 0.5
    assert_is(found, models[:2], [1 - best, best])


def test_greedy(models: list[str], photos: Path, tmp_path: Path) -> None:
    record, found = made(
        tmp_path / "out", f"--model={','.join(models)}", "--method=greedy", f"--data={photos}",
        "--templates=none",
    )  # fmt: skip
    for name, accuracy in zip(models, record["accuracy_top1"], strict=True):
        ended = run_program(
            "clip_jax.evaluate", f"--model={name}", "--tasks=zero_shot", f"--data={photos}",
            "--templates=none", f"--output={tmp_path / 'row.json'}",
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr
        (row,) = json.loads((tmp_path / "row.json").read_text())["results"]
        assert row["accuracy_top1"] == pytest.approx(accuracy)
    assert_is(found, record["chosen"])


def test_mistakes(models: list[str], tmp_path: Path) -> None:
    output, both = f"--output={tmp_path / 'out'}", f"--model={models[0]},{models[1]}"
    for words, part in (
        ([f"--model={models[0]}", output], "--model: is missing"),
        ([both], "--output: is missing"),
        ([both, output, "--method=greedy"], "--data: is missing"),
        ([both, output, "--weights=1,x"], "--weights=1,x"),
        ([both, output, "--weights=1,2,3"], "accepted are 2 numbers"),
    ):
        assert_mistake(run_program("clip_jax.soup", *words), part)
