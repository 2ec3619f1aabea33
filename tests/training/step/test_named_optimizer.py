"""Optimizers by name: against optax on separate matrices, against numpy; and wrong names."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from test_optimizer import RESNET, VIT
from tiny_clip import changed

from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import param_shapes
from clip_jax.training.config import OptimizerConfig
from clip_jax.training.step.named_optimizer import OPTIMIZERS, Optimizer
from clip_jax.training.step.optimizer import learning_rate_schedule, make_optimizer

STEPS = 3
DEEP = changed(VIT, vision__layers=2, logit_bias_init=None)
# Two towers as small as they get, of 3 and 2 blocks.
SHAPES = {
    **{f"vision/transformer/blocks_{i}/mlp/in/kernel": (4, 6) for i in range(3)},
    **{f"vision/transformer/blocks_{i}/mlp/in/bias": (6,) for i in range(3)},
    **{f"text/transformer/blocks_{i}/attention/query_key_value": (4, 3, 2, 2) for i in range(2)},
    **{f"text/transformer/blocks_{i}/attention/out": (2, 2, 4) for i in range(2)},
    "vision/positions": (5, 4),
    "text/token_embedding": (7, 4),
    "logit_scale": (),
}


def random_tree(seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {path: jnp.asarray(rng.standard_normal(s), jnp.float32) for path, s in SHAPES.items()}


def stacked(flat: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The parameters as `scan_layers` has them."""
    result: dict[str, Any] = {}
    for path, leaf in flat.items():
        before, found, after = path.partition("/blocks_")
        name = f"{before}/blocks{after[1:]}" if found else path
        result[name] = [*result.get(name, []), leaf] if found else leaf
    return {path: jnp.stack(x) if isinstance(x, list) else x for path, x in result.items()}


def train(config: OptimizerConfig, arrange: Any = dict) -> dict[str, jax.Array]:
    """A few steps; `arrange` makes the tree that is trained from {path: array}."""
    optimizer = make_optimizer(config, 10)

    def steps(params: Any, grads: list[Any]) -> Any:
        state = optimizer.init(params)
        for gradient in grads:
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    params, *grads = (
        unflatten_dict(arrange(random_tree(seed)), sep="/") for seed in range(STEPS + 1)
    )
    fast = jax.jit(steps, compiler_options={"xla_backend_optimization_level": 0})
    return flatten_dict(fast(params, grads), sep="/")


def config_of(name: str, **changes: Any) -> OptimizerConfig:
    settings: dict[str, Any] = {"learning_rate": 0.01, "warmup_steps": 1}
    if name == "adafactor":
        settings["options"] = {"min_dim_size_to_factor": 2}
    return OptimizerConfig(name=name, **settings | changes)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_blocks_are_trained_as_separate_ones(name: str) -> None:
    """Trust ratios, factored moments, norms of updates: layer by layer."""
    separate, scanned = train(config_of(name)), train(config_of(name), stacked)
    before = random_tree(0)
    assert all(bool(jnp.isfinite(x).all()) for x in separate.values())
    assert all(bool((x != before[path]).any()) for path, x in separate.items())
    for path, leaf in stacked(separate).items():
        np.testing.assert_allclose(scanned[path], leaf, rtol=2e-5, atol=2e-6, err_msg=path)


def test_an_optimizer_of_a_configuration_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "adan", Optimizer(optax.adan))
    monkeypatch.setitem(OPTIMIZERS, "odd", Optimizer(optax.contrib.momo))
    config = OptimizerConfig(name="adan", options={"b3": 0.98})
    params = unflatten_dict(random_tree(0), sep="/")
    jax.eval_shape(make_optimizer(config, 10).init, params)
    with pytest.raises(UserError, match="name='odd': odd cannot take these"):
        make_optimizer(OptimizerConfig(name="odd"), 10)  # it needs the loss


def matrices(flat: dict[str, Any]) -> dict[str, Any]:
    """Every matrix that muon shall see as (in, out), {name: array}; the rest as it is."""
    result = {}
    for path, x in flat.items():
        if path.endswith("/query_key_value"):  # (D, 3, H, K)
            for index, name in enumerate("qkv"):
                result[f"{path}/{name}"] = x[:, index].reshape(x.shape[0], -1)
        elif path.endswith("attention/out") or (path.startswith("vision/stage") and x.ndim == 4):
            result[path] = x.reshape(-1, x.shape[-1])  # (H, K, D), or a convolution
        else:
            result[path] = x
    return result


def is_matrix(path: str) -> bool:
    ends = ("/q", "/k", "/v", "attention/out", "mlp/in/kernel", "mlp/out/kernel")
    conv = path.startswith("vision/stage") and path.endswith("kernel")
    return path.endswith(ends) or conv or ("attention_pool" in path and path.endswith("kernel"))


def random_params(config: ClipConfig, seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    flat = flatten_dict(param_shapes(config), sep="/")
    return {
        path: jnp.asarray(rng.standard_normal(x.shape), jnp.float32) for path, x in flat.items()
    }


def updates_of(
    config: OptimizerConfig, grads: list[dict[str, Any]], params: dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """{path: update} of each step; the parameters (by default the first gradient) stay."""
    kept, *trees = (unflatten_dict(x, sep="/") for x in (params or grads[0], *grads))

    def run(trees: list[Any], params: Any) -> list[Any]:
        optimizer = make_optimizer(config, 10)
        state, done = optimizer.init(params), []
        for tree in trees:
            updates, state = optimizer.update(tree, state, params)
            done.append(updates)
        return done

    fast = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
    return [flatten_dict(tree, sep="/") for tree in fast(trees, kept)]


MUON = OptimizerConfig(
    name="muon", learning_rate=0.02, warmup_steps=1, weight_decay=0.0, clip_norm=None
)


def newton_schulz(x: np.ndarray) -> np.ndarray:
    """Five quintic iterations (Jordan 2024), (m, n) float64 of any scale."""
    a, b, c = 3.4445, -4.7750, 2.0315
    y = x / np.linalg.norm(x)
    for _ in range(5):
        gram = y @ y.T
        y = a * y + (b * gram + c * gram @ gram) @ y
    return y


@pytest.mark.slow
@pytest.mark.parametrize("config", [DEEP, RESNET], ids=["vit", "resnet"])
def test_muon_on_every_matrix_and_adam_elsewhere(config: ClipConfig) -> None:
    """Q, K, V, out and the MLPs' matrices of each layer, and convolutions, as (in, out) matrices:
    singular values of about 1, whatever the gradient's, against numpy."""
    params = random_params(config, 0)
    gradient = {path: x for path, x in params.items() if not path.endswith(("/mean", "/var"))}
    settings = OptimizerConfig(**{**vars(MUON), "warmup_steps": 0})
    (update,) = updates_of(settings, [params])
    adam = optax.nadam(0.02, b1=MUON.b1, b2=MUON.b2, eps=MUON.eps)
    others = adam.update(gradient, adam.init(gradient))[0]
    apart, others = matrices(gradient), matrices(others)
    for path, u in matrices({path: update[path] for path in gradient}).items():
        if not is_matrix(path):
            np.testing.assert_allclose(u, others[path], rtol=2e-4, atol=2e-6, err_msg=path)
            continue
        x = np.float64(apart[path])
        rows, columns = x.shape
        wide = newton_schulz(x) if rows <= columns else newton_schulz(x.T).T
        expected = -0.02 * max(1, columns / rows) ** 0.5 * wide
        np.testing.assert_allclose(u, expected, rtol=1e-3, atol=2e-5, err_msg=path)
        singular = np.linalg.svd(wide, compute_uv=False)
        assert singular.max() < 1.3
        assert np.median(singular) > 0.65
    # 6 a block; a ResNet has four of three convolutions and a shortcut, and a pool of 4 matrices.
    blocks = {"vit": 3 * 6, "resnet": 6 + 4 * 4 + 4}[config.vision.kind]
    assert sum(map(is_matrix, apart)) == blocks


def test_adam_learning_rate_of_muon() -> None:
    """A peak of its own under the same schedule, for updates and for decay."""
    grads = [random_tree(seed) for seed in range(2)]
    config = {**vars(MUON), "weight_decay": 0.1}
    one = updates_of(OptimizerConfig(**config), grads)[-1]
    config["options"] = {"adam_learning_rate": 0.005}
    two = updates_of(OptimizerConfig(**config), grads)[-1]
    for path in one:
        matrix = is_matrix(path) or path.endswith("query_key_value")
        np.testing.assert_allclose(two[path], one[path] * (1 if matrix else 0.25), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "lion", "muon", "sgd", "adafactor", "ademamix"])
def test_first_moment_in_bfloat16(name: str) -> None:
    options = {"momentum": 0.9} if name in ("sgd", "adafactor") else None
    config = OptimizerConfig(name=name, first_moment_dtype="bfloat16", options=options)
    params = unflatten_dict(random_tree(0), sep="/")
    state = jax.eval_shape(make_optimizer(config, 10).init, params)
    halves = [x for x in jax.tree.leaves(state) if x.dtype == jnp.bfloat16]
    assert sum(x.size for x in halves) >= sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("name", ["adamw ", "Muon", "chain", "__name__", ""])
def test_wrong_names(name: str) -> None:
    near = f"did you mean {name.strip().lower()!r}? " if name in ("adamw ", "Muon") else ""
    with pytest.raises(UserError) as error:
        make_optimizer(OptimizerConfig(name=name), 10)
    message = f"config.optimizer.name={name!r}: {near}choose of adamw, adafactor, ademamix, "
    assert str(error.value).startswith(message)


OPTIONS = "config.optimizer.options"
MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"options": {"learning_rate": 1}}, f"{OPTIONS}.learning_rate=1: is set by config.optimizer."),
    ({"options": {"weight_decay": 1}}, f"{OPTIONS}.weight_decay=1: is set by config.optimizer."),
    ({"options": {"mask": None}}, "is set by config.optimizer.weight_decay"),
    ({"options": {"nestrov": True}}, "did you mean 'nesterov'?"),
    ({"options": {"nesterov": "yes"}}, "must be True or False (by default False)"),
    ({"options": {"b1": "0.9"}}, f"{OPTIONS}.b1='0.9': must be a number"),
    ({"options": {"mu_dtype": "float17"}}, "'float17' not understood"),
    ({"options": {"eps_root": {"a": 1}}}, "eps_root={'a': 1}: must be a number"),
    ({"name": "sgd", "options": {"momentum": "0.9"}}, "sgd cannot take these"),
    ({"name": "sgd", "options": {"b1": 0.9}}, "sgd has no such argument"),
    ({"name": "muon", "options": {"ns_coeffs": "x"}}, "Unknown ns_coeff preset string: x"),
    ({"name": "muon", "options": {"adam_learning_rate": -1}}, "must be a number above 0"),
    ({"name": "muon", "options": {"muon_weight_dimension_numbers": 1}}, "no such argument"),
    ({"name": "lamb", "first_moment_dtype": "bfloat16"}, "first_moment_dtype='bfloat16': lamb"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES)
def test_wrong_options(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        make_optimizer(OptimizerConfig(**changes), 10)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_options_override() -> None:
    """b1 of the run is not that of the options; optax says what comes of it."""
    config = OptimizerConfig(
        options={"b1": 0.5, "nesterov": True}, warmup_steps=0, weight_decay=0.0, clip_norm=None
    )
    grads = [{"x": scale * jnp.asarray([0.3, -2.0])} for scale in (1.0, -3.0)]
    theirs = optax.nadam(learning_rate_schedule(config, 10), b1=0.5, b2=config.b2, eps=config.eps)
    state = theirs.init(grads[0])
    for update, gradient in zip(updates_of(config, grads), grads, strict=True):
        expected, state = theirs.update(gradient, state)
        np.testing.assert_allclose(update["x"], expected["x"], rtol=1e-6)
