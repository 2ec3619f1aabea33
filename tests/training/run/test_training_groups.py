"""Runs with weights, balance and changed captions: they train, and refuse what cannot be."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file
from shards import png, write_shard
from tiny import tiny_config

from clip_jax.data.stream.groups import GroupNumber
from clip_jax.errors import UserError
from clip_jax.losses import LOSSES, Loss
from clip_jax.models.two_tower import init_params
from clip_jax.training.config import TrainConfig, build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.run.data import open_training_data
from clip_jax.training.run.loop import train
from clip_jax.training.step.gradient import Objective, loss_gradient


@pytest.fixture
def people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    samples = []
    for number in range(24):
        fields = {"gender": ("male", "female")[number % 3 == 0], "one": 1}
        text = f"a {('man', 'woman')[number % 3 == 0]} number {number}".encode()
        members = {"png": png(number), "txt": text, "json": json.dumps(fields).encode()}
        samples.append((f"{number:03d}", members))
    write_shard(tmp_path / "people.tar", samples)
    return str(tmp_path / "people.tar")


def configured(path: str, **changes: Any) -> TrainConfig:
    values = {"data__path": path, "data__format": "auto", "batch_size": 8, "steps": 3}
    return build_config(tiny_config(**(values | changes)))


def losses(config: TrainConfig, workdir: Path) -> list[float]:
    train(config, workdir)
    return [row["loss"] for row in read_rows(workdir / "metrics.jsonl")]


def test_weights_act_and_those_of_one_do_not(people: str, tmp_path: Path) -> None:
    plain = losses(configured(people), tmp_path / "plain")
    assert losses(configured(people, data__sample_weight="one"), tmp_path / "one") == plain
    inverse = losses(configured(people, data__sample_weight="1/gender"), tmp_path / "inverse")
    assert np.isfinite(inverse).all()
    assert inverse[0] != plain[0]


def test_balance_is_part_of_a_runs_identity(people: str, tmp_path: Path) -> None:
    everything = {"data__balance_by": "gender", "data__attribute_words__words": "gender"}
    assert len(losses(configured(people, **everything), tmp_path / "run")) == 3
    with pytest.raises(UserError, match="other data"):
        train(configured(people, steps=5), tmp_path / "run")
    assert len(losses(configured(people, steps=5, **everything), tmp_path / "run")) == 5


def test_an_adversary_learns_beside_the_towers_and_goes_on(people: str, tmp_path: Path) -> None:
    group = {"adversary__field": "gender", "adversary__groups": ("male", "female")}
    config = configured(people, steps=4, checkpoint__every_steps=2, **group)
    losses(config, tmp_path / "run")
    whole = read_rows(tmp_path / "run" / "metrics.jsonl")
    exported = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not [name for name in exported if "adversary" in name]
    for later in ("model", "checkpoints/4"):
        shutil.rmtree(tmp_path / "run" / later)
    losses(config, tmp_path / "run")
    again = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["adversary_loss"] for row in whole] == [row["adversary_loss"] for row in again]
    assert 0.3 < whole[0]["adversary_loss"] < 1.5


def test_the_adversary_gets_the_groups_of_the_records(people: str) -> None:
    source = open_training_data(configured(people))
    group = GroupNumber("gender", ("male", "female"))
    found = {source.key(index): group(source, index) for index in range(24)}
    assert [number for _, number in sorted(found.items())] == [int(n % 3 == 0) for n in range(24)]


def test_a_group_that_the_configuration_does_not_name(people: str, tmp_path: Path) -> None:
    group = {"adversary__field": "gender", "adversary__groups": ("female", "other")}
    with pytest.raises(UserError, match=r"'other'\): record .* has gender='male'; give all"):
        train(configured(people, **group), tmp_path / "run")


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_micro_batches_change_nothing(loss: str) -> None:
    architecture = build_config(tiny_config()).model.architecture()
    bias = {"logit_bias_init": -5.0} if loss == "sigmoid" else {}
    architecture = type(architecture)(**{**vars(architecture), **bias})
    rng = np.random.default_rng(0)
    batch = {
        "images": rng.integers(0, 256, (8, 32, 32, 3), np.uint8),
        "tokens": rng.integers(0, 100, (8, 12)).astype(np.int32),
        "weights": rng.uniform(0, 3, 8).astype(np.float32),
    }
    params, key = jax.jit(partial(init_params, architecture))(jax.random.key(0)), jax.random.key(1)
    one, two = (
        jax.jit(partial(loss_gradient, Objective(architecture, loss, microbatches=n)))(
            params, batch, key
        )[:2]
        for n in (1, 2)
    )
    np.testing.assert_allclose(one[0]["loss"], two[0]["loss"], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(two[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * (np.abs(b).max() + 1e-6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data__streaming": True, "data__balance_by": "x"},
            r"balance_by='x': counts .*data\.streaming",
        ),
        (
            {
                "data__path": "",
                "data__mixture": ({"path": "a"},),
                "data__sample_weight": "1/x",
            },
            r"sample_weight='1/x': .*data\.mixture",
        ),
        ({"adversary__field": "gender"}, r"adversary\.groups=\(\): give at least two values"),
        ({"adversary__groups": ("a", "b")}, r"groups=\('a', 'b'\): give config\.adversary\.field"),
        ({"data__attribute_words__words": "hair"}, r"attribute_words\.words='hair': accepted are"),
        (
            {"data__sample_weight": "x", "loss": "plain"},
            r"sample_weight='x': config\.loss='plain' takes no",
        ),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "plain", Loss(lambda out, implementation: out.logit_scale))
    with pytest.raises(UserError, match=message):
        configured("nowhere", **changes)
