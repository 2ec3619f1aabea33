"""Weight decay's mask, the schedule, AdamW against numpy, and what a step guards."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_clip
from flax.traverse_util import flatten_dict
from tiny_clip import TINY, changed

from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import param_shapes
from clip_jax.training.config import OptimizerConfig
from clip_jax.training.step.gradient import Objective
from clip_jax.training.step.optimizer import learning_rate_schedule, make_optimizer
from clip_jax.training.step.parameter_groups import decay_mask
from clip_jax.training.step.state import TrainState, create_state
from clip_jax.training.step.update import make_train_step

VIT = changed(
    ClipConfig(),
    **TINY | dict.fromkeys(("vision__layers", "text__layers"), 1),
    logit_bias_init=-10.0,
)
RESNET = changed(VIT, **tiny_clip.RESNET | {"text__layers": 1}, logit_bias_init=None)
DECAYED = ("kernel", "query_key_value", "attention/out", "patch_embedding", "token_embedding",
           "projection")  # fmt: skip


@pytest.mark.parametrize("config", [VIT, changed(VIT, scan_layers=True), RESNET])
def test_matrices_decay_and_nothing_else(config: ClipConfig) -> None:
    """No bias, gain, position, class token, scale or running statistic does."""
    mask = flatten_dict(decay_mask(param_shapes(config)), sep="/")
    assert {path for path, decays in mask.items() if decays} == {
        path for path in mask if path.endswith(DECAYED)
    }
    assert len(mask) > 2 * sum(mask.values()) > 10


def test_schedule() -> None:
    """Linear from 0 to the peak, then half a cosine that ends at 0 and stays there."""
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=2e-3, warmup_steps=10), 110)
    expected = {0: 0, 1: 2e-4, 5: 1e-3, 10: 2e-3, 60: 1e-3, 110: 0, 500: 0}
    expected[35] = 1e-3 * (1 + math.cos(math.pi / 4))
    for step, value in expected.items():
        assert float(schedule(step)) == pytest.approx(value, abs=1e-9), step


def test_schedule_of_a_run_shorter_than_its_warm_up() -> None:
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup_steps=100), 5)
    assert [float(schedule(step)) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 0]
    assert float(learning_rate_schedule(OptimizerConfig(), 1)(0)) == pytest.approx(5e-4)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_three_steps_of_adamw(clip_norm: float | None) -> None:
    config = OptimizerConfig(
        learning_rate=0.1, warmup_steps=2, weight_decay=0.3, clip_norm=clip_norm
    )
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((3, 2)), "bias": rng.standard_normal(2)}
    first, second = ({name: np.zeros_like(x) for name, x in params.items()} for _ in range(2))
    optimizer = make_optimizer(config, steps=4)
    ours: Any = jax.tree.map(jnp.float32, params)
    state = optimizer.init(ours)
    for step, rate in enumerate((0.0, 0.05, 0.1), start=1):
        grads = {name: 3 * rng.standard_normal(x.shape) for name, x in params.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.float32, grads), state, ours)
        ours = optax.apply_updates(ours, updates)

        norm = math.sqrt(sum((gradient**2).sum() for gradient in grads.values()))
        assert norm > 1
        for name, x in params.items():
            gradient = grads[name] / (norm if clip_norm else 1)
            first[name] = config.b1 * first[name] + (1 - config.b1) * gradient
            second[name] = config.b2 * second[name] + (1 - config.b2) * gradient**2
            direction = (first[name] / (1 - config.b1**step)) / (
                np.sqrt(second[name] / (1 - config.b2**step)) + config.eps
            )
            decay = config.weight_decay * x if name == "kernel" else 0
            params[name] = x - rate * (direction + decay)
            np.testing.assert_allclose(ours[name], params[name], rtol=1e-5, atol=1e-6)


EMA_DECAY = 0.15  # reached at the second step: the first uses 1/10


@functools.cache
def training() -> tuple[Any, TrainState]:
    """A compiled step on a tiny ViT, and a fresh state."""
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
    optimizer, schedule = make_optimizer(config, 100), learning_rate_schedule(config, 100)
    step = jax.jit(
        make_train_step(Objective(VIT), optimizer, schedule, ema_decay=EMA_DECAY),
        compiler_options={"xla_backend_optimization_level": 0},
    )
    shapes = jax.eval_shape(lambda: create_state(VIT, optimizer, 0, ema=True))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jnp.asarray(0.2 * rng.standard_normal(x.shape), x.dtype), shapes.params
    )
    params["logit_scale"] = jnp.float32(2.0)
    return step, TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        ema_params=params,
        key=jax.random.key(0),
        failed=jnp.zeros((), bool),
    )


def batch() -> dict[str, jax.Array]:
    rng = np.random.default_rng(1)
    return {
        "images": jnp.asarray(rng.integers(0, 256, (6, 32, 32, 3)), jnp.uint8),
        "tokens": jnp.asarray(rng.integers(0, 60, (6, 12)), jnp.int32),
    }


def with_params(state: TrainState, **changes: Any) -> TrainState:
    changed = {name: jnp.asarray(value, jnp.float32) for name, value in changes.items()}
    return state.replace(params=state.params | changed)


def equal(a: Any, b: Any) -> list[bool]:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return [np.array_equal(x, y, equal_nan=True) for x, y in pairs]


def test_logit_scale_is_clamped() -> None:
    """To [0, ln 100], whatever the gradient says."""
    step, state = training()
    for start, bound in ((5.5, math.log(100)), (-0.5, 0.0)):
        after, metrics = step(with_params(state, logit_scale=start), batch())
        assert float(after.params["logit_scale"]) == pytest.approx(bound, abs=1e-6)
        assert float(after.params["logit_scale"]) <= np.float32(math.log(100))
        assert metrics["logit_scale"] == pytest.approx(math.exp(start), rel=1e-5)
        assert metrics["learning_rate"] == pytest.approx(1e-2)


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    step, state = training()
    broken = with_params(state, logit_scale=np.nan)
    after, metrics = step(broken, batch())
    assert not np.isfinite(metrics["loss"])
    assert metrics["failed"]
    assert after.failed
    for name in ("step", "params", "opt_state", "ema_params"):
        assert all(equal(getattr(after, name), getattr(broken, name))), name

    # The host notices one step later: that one must not change anything either.
    failed = state.replace(failed=jnp.ones((), bool))
    after, metrics = step(failed, batch())
    assert np.isfinite(metrics["loss"])
    assert metrics["failed"]
    for name in ("step", "params", "opt_state", "ema_params"):
        assert all(equal(getattr(after, name), getattr(state, name))), name


def test_moving_average() -> None:
    """0.1 of the old at the first step, then up to the decay."""
    step, state = training()
    average: Any = state.params
    for decay in (0.1, EMA_DECAY, EMA_DECAY):
        state, _ = step(state, batch())
        average = jax.tree.map(
            lambda old, new, d=decay: d * old + (1 - d) * new, average, state.params
        )
        for ours, expected in zip(
            jax.tree.leaves(state.ema_params), jax.tree.leaves(average), strict=True
        ):
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
    assert state.eval_params is state.ema_params
    assert state.replace(ema_params=None).eval_params is state.params


def test_a_decoder_is_left_alone() -> None:
    """No loss reaches it: decay alone would wear it down."""
    params = {
        "decoder": {"head": jnp.ones((4, 8))},
        "text": {"projection": jnp.ones((4, 4))},
        "logit_scale": jnp.ones(()),
    }
    optimizer = make_optimizer(OptimizerConfig(warmup_steps=0, weight_decay=0.5), 10)
    gradients = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    assert not np.any(updates["decoder"]["head"])
    assert np.all(updates["text"]["projection"] < 0)
