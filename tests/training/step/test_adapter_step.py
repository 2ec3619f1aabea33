"""Steps of a run with an adapter: its gradient, any mesh, a base that stays, mistakes."""

from typing import Any

import jax
import numpy as np
import pytest
from tiny import tiny_config
from tiny_clip import assert_same_params, random_params, tiny_architecture

from clip_jax import sharding
from clip_jax.adaptation.low_rank import matrix, merged, sites
from clip_jax.adaptation.tree import flat
from clip_jax.errors import UserError
from clip_jax.training.adapter_config import AdapterConfig
from clip_jax.training.config import OptimizerConfig, TrainConfig, build_config
from clip_jax.training.step.adapter import adapter_method
from clip_jax.training.step.compiled import jit_train_step
from clip_jax.training.step.gradient import Objective, loss_gradient
from clip_jax.training.step.optimizer import make_optimizer
from clip_jax.training.step.state import TrainState, abstract_state, create_state

VIT = tiny_architecture(vision__layers=1, text__layers=1)
BATCH = 16
LORA = AdapterConfig("lora", rank=2, targets=("query", "value", "out", "mlp"), dropout=0.25)


def make_batch() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 32, 32, 3), dtype=np.uint8)
    return {"images": images, "tokens": rng.integers(1, 60, (BATCH, 12), dtype=np.int32)}


def trained(adapter: AdapterConfig, sizes: tuple[int, int, int], steps: int) -> list[TrainState]:
    """The states after three steps, and after all, of two micro-batches."""
    optimizer = OptimizerConfig(
        learning_rate=1e-3, warmup_steps=1, ema_decay=0.9, microbatches=2, weight_decay=0.1
    )
    config = TrainConfig(adapter=adapter, batch_size=BATCH, optimizer=optimizer)
    mesh = sharding.make_mesh(*sizes, devices=jax.devices()[: int(np.prod(sizes))])
    method, made = adapter_method(adapter), make_optimizer(optimizer, 1000)
    shapes = abstract_state(mesh, VIT, made, ema=True, adapter=method)
    begin = jax.jit(
        lambda model: create_state(VIT, made, 0, ema=True, adapter=method, model=model),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, shapes),
    )
    found = []
    with jax.set_mesh(mesh):
        state, batch = begin(random_params(VIT)), sharding.global_batch(mesh, make_batch())
        step = jit_train_step(config, VIT, mesh, 1000)
        for number in range(1, steps + 1):
            state, metrics = step(state, batch)
            assert not metrics["failed"]
            if number in (3, steps):
                found.append(jax.device_get(state.replace(key=None)))
    return found


def test_eight_devices_are_one_and_the_base_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "FSDP_MIN_BYTES", 1024)
    (one,), (many, end) = trained(LORA, (1, 1, 1), 3), trained(LORA, (2, 2, 2), 50)
    start = adapter_method(LORA).init(VIT, random_params(VIT), jax.random.key(0))  # type: ignore[union-attr]
    assert many.params.keys() == one.params.keys() == start.keys()
    for path, leaf in one.params.items():
        np.testing.assert_allclose(many.params[path], leaf, rtol=0, atol=1e-5, err_msg=path)
        assert np.abs(end.params[path] - leaf).max() > 1e-3, path
        assert np.abs(end.params[path] - end.ema_params[path]).max() > 1e-5, path
    assert_same_params(end.base, random_params(VIT))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(end.params))
    maps = (32 + 32) * 3, (32 + 32) * 3  # query, value and out of 32 → 32, of a block
    mlps = 2 * (32 + 48), 2 * (32 + 64)
    assert size == 4 * 2 * (sum(maps) + sum(mlps))  # float32, rank 2
    assert size == sum(leaf.nbytes for leaf in jax.tree.leaves(end.ema_params))
    # Two moments and the counts of steps; nothing for a parameter of the base.
    state = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(end.opt_state))
    assert 2 * size < state < 2 * size + 32


def test_the_gradient_is_that_of_the_merged_kernels() -> None:
    """W = W₀ + s·a·b: by the chain rule from the gradient of a run that trains all parameters."""
    method = adapter_method(AdapterConfig("lora", rank=2, targets=LORA.targets, dropout=0.0))
    assert method is not None
    base, key, rng = random_params(VIT), jax.random.key(0), np.random.default_rng(1)
    adapter = {
        path: np.asarray(leaf + rng.normal(0, 0.1, leaf.shape), np.float32)
        for path, leaf in method.init(VIT, base, key).items()
    }
    _, found, _ = jax.jit(
        lambda a: loss_gradient(Objective(VIT, adapter=method), a, make_batch(), key, base)
    )(adapter)
    whole = merged(base, adapter, method.scale)
    _, grads, _ = jax.jit(lambda p: loss_gradient(Objective(VIT), p, make_batch(), key))(whole)
    by_path, chosen = flat(grads), [s for s in sites(base) if f"{s.path}_a" in adapter]
    assert len(chosen) == 10  # three of attention and two of an MLP, in each tower
    for site in chosen:
        kernel = np.asarray(matrix(by_path[site.kernel], site))
        a, b = adapter[f"{site.path}_a"], adapter[f"{site.path}_b"]
        for end, wanted in (("a", kernel @ b.T), ("b", a.T @ kernel)):
            np.testing.assert_allclose(
                found[f"{site.path}_{end}"], method.scale * wanted, rtol=0, atol=2e-6, err_msg=end
            )


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (AdapterConfig("bitfit", rank=2), r"adapter.rank=2: no option of bitfit; it has none"),
        (AdapterConfig("prefix", rank=2), r"adapter.rank=2: no option of prefix; it has towers"),
    ],
)
def test_an_option_that_a_method_has_not(adapter: AdapterConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        adapter_method(adapter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter__method": "lora"}, "config.adapter.method='lora': give the model"),
        ({"adapter__method": "coop"}, "config.adapter.method='coop': choose one of 'lora', 'dora'"),
        ({"adapter__rank": 4}, r"config.adapter=\{'rank': 4\}: give config.adapter.method too"),
        ({"adapter__rank": 0}, r"config.adapter.rank=0: must be"),
        (
            {"adapter__method": "lora", "init__source": "x", "init__only": ("vision/.*",)},
            r"config.init.only=\('vision/.\*',\): leave it out",
        ),
        (
            {"adapter__method": "lora", "init__source": "x", "optimizer__freeze": ("text/.*",)},
            r"config.optimizer.freeze=\('text/.\*',\): leave it out",
        ),
        ({"model__name": ""}, "config.model.name='': give a name, or the model of"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_config(tiny_config(**changes))
