"""Rates by tower and layer, frozen parameters, and what the optimizer's state is made of."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from test_named_optimizer import random_params, updates_of
from test_optimizer import RESNET, VIT, batch
from tiny_clip import changed

from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import param_shapes
from clip_jax.sharding import leaves_by_path
from clip_jax.training.config import OptimizerConfig, TowerOptimizerConfig
from clip_jax.training.step.gradient import Objective
from clip_jax.training.step.optimizer import learning_rate_schedule, make_optimizer
from clip_jax.training.step.parameter_groups import NO_DECAY, rate_multipliers
from clip_jax.training.step.state import create_state
from clip_jax.training.step.update import make_train_step

DEEP = changed(VIT, vision__layers=2)
FAST = {"xla_backend_optimization_level": 0}


def test_every_leaf_is_trained_as_by_an_adamw_of_its_own() -> None:
    """Its rate and its decay, against plain optax on that leaf alone."""
    config = OptimizerConfig(
        learning_rate=0.1,
        warmup_steps=1,
        weight_decay=0.3,
        clip_norm=None,
        vision=TowerOptimizerConfig(0.5, layer_decay=0.8),
        text=TowerOptimizerConfig(2.0, layer_decay=0.6, weight_decay=0.05),
    )
    grads = [random_params(DEEP, seed) for seed in range(2)]
    params = random_params(DEEP, 2)
    got = updates_of(config, grads, params)[-1]
    rates = flatten_dict(rate_multipliers(param_shapes(DEEP), config), sep="/")
    assert len({*rates.values()}) == 4 + 3 + 1  # of vision, text and the logit scale

    def alone(path: str, params: jax.Array, *grads: jax.Array) -> jax.Array:
        own_decay = 0.05 if path.startswith("text/") else 0.3
        schedule = learning_rate_schedule(config, 10)
        optimizer = optax.adamw(
            lambda step: rates[path] * schedule(step),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=0.0 if NO_DECAY.search(path) else own_decay,
        )
        state = optimizer.init(params)
        for gradient in grads:
            update, state = optimizer.update(gradient, state, params)
        return update

    expected = jax.jit(
        lambda *trees: {path: alone(path, *(tree[path] for tree in trees)) for path in got},
        compiler_options=FAST,
    )(params, *grads)
    for path, ours in got.items():
        np.testing.assert_allclose(ours, expected[path], rtol=1e-5, atol=1e-8, err_msg=path)


def test_decay_is_that_of_adamw_under_another_optimizer() -> None:
    """-rate·decay·w beside the update without decay; lion's own would be another."""
    grads, params = [random_params(VIT, seed) for seed in range(2)], random_params(VIT, 2)
    settings: dict[str, Any] = {"name": "lion", "learning_rate": 0.1, "warmup_steps": 0}
    with_decay = updates_of(OptimizerConfig(**settings, weight_decay=0.4), grads, params)[-1]
    without = updates_of(OptimizerConfig(**settings, weight_decay=0.0), grads, params)[-1]
    rate = learning_rate_schedule(OptimizerConfig(**settings), 10)(1)
    for path, update in with_decay.items():
        decay = 0.0 if NO_DECAY.search(path) else 0.4
        expected = without[path] - rate * decay * params[path]
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-7, err_msg=path)


def state_leaves(config: ClipConfig, optimizer: OptimizerConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """{path: leaf} of the optimizer's state, by shapes alone."""
    state = jax.eval_shape(make_optimizer(optimizer, 10).init, param_shapes(config))
    return leaves_by_path(state)


@pytest.mark.parametrize("scan_layers", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor", "lamb"])
def test_paths_in_the_state_end_in_those_of_parameters(name: str, scan_layers: bool) -> None:
    """So that moments are laid where their parameters are."""
    config = changed(DEEP, scan_layers=scan_layers)
    params = flatten_dict(param_shapes(config), sep="/")
    found = set()
    for path, leaf in state_leaves(config, OptimizerConfig(name=name)).items():
        owner = [name for name in params if path.endswith(f"/{name}")]
        assert len(owner) == 1 or leaf.size <= 3, path
        if owner and leaf.shape == params[owner[0]].shape:
            found.add(owner[0])
    assert found == params.keys()


def test_memory_of_the_state() -> None:
    """AdamW: 8 bytes a parameter, 6 with bfloat16, and three counters; muon 4 a matrix's."""

    def bytes_of(optimizer: OptimizerConfig, config: ClipConfig = VIT) -> int:
        leaves = state_leaves(config, optimizer).values()
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    sizes = {path: leaf.size for path, leaf in flatten_dict(param_shapes(VIT), sep="/").items()}
    count, text = sum(sizes.values()), sum(n for p, n in sizes.items() if p.startswith("text/"))
    assert bytes_of(OptimizerConfig()) == 8 * count + 12
    assert bytes_of(OptimizerConfig(first_moment_dtype="bfloat16")) == 6 * count + 12
    assert bytes_of(OptimizerConfig(freeze=("vision/.*", "logit_.*"))) == 8 * text + 12
    ends = ("query_key_value", "attention/out", "in/kernel", "mlp/out/kernel")
    matrices = sum(size for path, size in sizes.items() if path.endswith(ends))
    assert bytes_of(OptimizerConfig(name="muon")) == 8 * count - 4 * matrices + 12 + 4 * (3 + 2)


def test_running_statistics_have_no_state() -> None:
    paths = state_leaves(RESNET, OptimizerConfig())
    assert any("stage1_block0/norm1/scale" in path for path in paths)
    assert not [path for path in paths if path.endswith(("/mean", "/var"))]


@pytest.mark.slow
def test_clipping_sees_what_is_trained() -> None:
    """Gradients of frozen leaves, zero or not, are no part of the norm."""
    grads, params = random_params(VIT, 0), random_params(VIT, 1)
    settings: dict[str, Any] = {"name": "sgd", "learning_rate": 1.0, "warmup_steps": 0}
    config = OptimizerConfig(**settings, weight_decay=0.0, freeze=("vision/.*",), clip_norm=0.5)
    (got,) = updates_of(config, [grads], params)
    trained = {path: x for path, x in grads.items() if not path.startswith("vision/")}
    norm = np.sqrt(sum(float((x**2).sum()) for x in trained.values()))
    for path, update in got.items():
        if path in trained:
            np.testing.assert_allclose(update, -trained[path] * 0.5 / norm, rtol=1e-5)
        else:
            assert not update.any()


@pytest.mark.slow
@pytest.mark.parametrize("config", [VIT, pytest.param(RESNET, marks=pytest.mark.slow)])
def test_a_step_leaves_what_is_frozen(config: ClipConfig) -> None:
    """To the last bit, running statistics and a clamped scale too; the rest moves."""
    frozen = ("vision/.*", "logit_scale")
    optimizer = OptimizerConfig(learning_rate=0.01, warmup_steps=0, freeze=frozen)
    built = make_optimizer(optimizer, 10)
    schedule = learning_rate_schedule(optimizer, 10)
    objective = Objective(config, frozen=frozen)
    create = jax.jit(lambda: create_state(config, built, 0, ema=True), compiler_options=FAST)
    state = create()
    state.params["logit_scale"] = jnp.float32(5.5)  # a step would clamp it
    size = config.image_size
    rows = batch() | {"images": jnp.zeros((6, size, size, 3), jnp.uint8)}
    step = jax.jit(make_train_step(objective, built, schedule, 0.9), compiler_options=FAST)
    after, metrics = step(state, rows)
    assert np.isfinite(metrics["loss"])
    before = flatten_dict(state.params, sep="/")
    for path, leaf in flatten_dict(after.params, sep="/").items():
        same = np.asarray(leaf).tobytes() == np.asarray(before[path]).tobytes()
        unused = path == "logit_bias"  # the softmax loss has none
        assert same == (path.startswith("vision/") or path == "logit_scale" or unused), path
