"""Optimizers by name: optax's, and any that a configuration file adds to `OPTIMIZERS`."""

import difflib
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clip_jax.errors import UserError, first_line
from clip_jax.sharding import path_of
from clip_jax.training.config import OptimizerConfig
from clip_jax.training.step.parameter_groups import stack_of

NAME, OPTIONS = "config.optimizer.name", "config.optimizer.options"
MOMENT = "first_moment_dtype"

# Each entry is the path pattern of an attention, MLP or convolution matrix, with its input and
# output axes counted from the end. All other axes index separate matrices: queries, keys and
# values; the layers of a stack.
_MATRICES = tuple(
    (re.compile(pattern), reduced, output)
    for pattern, reduced, output in (
        (r".*/query_key_value", (-4,), (-2, -1)),  # (D, 3, H, K)
        (r".*/key_value", (-4,), (-2, -1)),  # (C, 2, H, K)
        (r".*/attention/query", (-3,), (-2, -1)),  # (D, H, K)
        (r".*/(attention|mixer)/out", (-3, -2), (-1,)),  # (H, K, D)
        (r".*/mlp/(in|gate|out)/kernel", (-2,), (-1,)),  # (D, M), (M, D)
        (r"vision/attention_pool/(query|key|value|out)/kernel", (-2,), (-1,)),  # ResNet's
        (r"vision/(stem/)?stage\d.*/kernel", (-4, -3, -2), (-1,)),  # (h, w, C, D)
    )
)


def _matrix_axes(path: str, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
    for pattern, reduced, output in _MATRICES:
        if pattern.fullmatch(path):
            convolution = len(reduced) == 3
            if convolution and (leaf.ndim != 4 or leaf.shape[-2] == 1):  # depthwise is no matrix
                return None
            return optax.contrib.MuonDimensionNumbers(reduced, output)
    return None


def _muon_dimensions(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _matrix_axes(path_of(path), leaf), params
    )


class Optimizer(NamedTuple):
    """An optimizer, and how it takes the settings that a run has in common for all.

    Attributes:
      make: called with `learning_rate`, a schedule, and further arguments; must not decay weights,
        which the run does itself.
      settings: maps b1, b2, eps and first_moment_dtype of `OptimizerConfig`, as far as it has them,
        to the names of its arguments.
      by_layer: its statistics are of whole leaves, so that it must see each layer of stacked blocks
        (`scan_layers`) separately.
    """

    make: Callable[..., optax.GradientTransformation]
    settings: Mapping[str, str] = {}
    by_layer: bool = False


_BETAS = {"b1": "b1", "b2": "b2"}
_ADAM = _BETAS | {"eps": "eps"}


# A configuration file adds others: OPTIMIZERS["adan"] = Optimizer(optax.adan).
OPTIMIZERS: dict[str, Optimizer] = {
    "adamw": Optimizer(
        functools.partial(optax.adamw, weight_decay=0.0), _ADAM | {MOMENT: "mu_dtype"}
    ),
    "adafactor": Optimizer(optax.adafactor, {MOMENT: "dtype_momentum"}, by_layer=True),
    "ademamix": Optimizer(optax.contrib.ademamix, _ADAM | {MOMENT: "mu_dtype"}),
    "lamb": Optimizer(optax.lamb, _ADAM, by_layer=True),
    "lars": Optimizer(optax.lars, by_layer=True),
    "lion": Optimizer(
        functools.partial(optax.lion, weight_decay=0.0), _BETAS | {MOMENT: "mu_dtype"}
    ),
    "muon": Optimizer(
        functools.partial(optax.contrib.muon, muon_weight_dimension_numbers=_muon_dimensions),
        {"b1": "adam_b1", "b2": "adam_b2", "eps": "eps", MOMENT: "mu_dtype"},
    ),
    "sgd": Optimizer(optax.sgd, {MOMENT: "accumulator_dtype"}),
}


def named_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns the optimizer `config.name` with its options, without weight decay.

    Options add to its settings and override them.

    Muon orthogonalises the queries, keys, values and output of every layer's attention, the
    matrices of every MLP, and convolutions. Adam with the same b1, b2 and eps trains the rest, with
    `adam_learning_rate` (if given) as the peak of the same schedule: see `muon_rate`. Adafactor
    factors the two largest axes of a leaf if both have `min_dim_size_to_factor`, 128 by default:
    MLPs and embeddings, but not attention, whose heads are smaller; with 32 it factors attention
    too, head by head.

    Raises `UserError` that names the key: an unknown optimizer, one that needs more than a schedule
    and gradients, an option that it does not have.
    """
    found = OPTIMIZERS.get(config.name)
    if found is None:
        near = difflib.get_close_matches(config.name.strip().lower(), OPTIMIZERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(
            f"{NAME}={config.name!r}: {hint}choose of {', '.join(OPTIMIZERS)}; a configuration file"
            " may add to OPTIMIZERS"
        )
    options = _options(config, found)
    arguments = _settings(config, found) | options
    try:
        optimizer = found.make(learning_rate=schedule, **arguments)
        if found.by_layer:
            optimizer = by_layer(optimizer)
        _rehearse(optimizer)
    except Exception as error:  # whatever optax or jax makes of an option
        given = f"{OPTIONS}={options}: " if options else f"{NAME}={config.name!r}: "
        raise UserError(f"{given}{config.name} cannot take these ({first_line(error)})") from error
    return optimizer


def _settings(config: OptimizerConfig, optimizer: Optimizer) -> dict[str, Any]:
    """Returns the run's settings as arguments of the optimizer."""
    if config.first_moment_dtype != "float32" and MOMENT not in optimizer.settings:
        raise UserError(
            f"config.optimizer.{MOMENT}={config.first_moment_dtype!r}: {config.name} cannot choose "
            "it; give 'float32'"
        )
    dtype = jnp.dtype(config.first_moment_dtype)
    values = {"b1": config.b1, "b2": config.b2, "eps": config.eps, MOMENT: dtype}
    return {name: values[ours] for ours, name in optimizer.settings.items()}


def _options(config: OptimizerConfig, optimizer: Optimizer) -> dict[str, Any]:
    """Returns `config.options`, checked against the optimizer's arguments and their defaults."""
    parameters = inspect.signature(optimizer.make).parameters
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    set_by_us = getattr(optimizer.make, "keywords", {})
    options = {}
    for key, value in (config.options or {}).items():
        where = f"{OPTIONS}.{key}"
        if key == "learning_rate":
            raise UserError(f"{where}={value!r}: is set by config.optimizer.learning_rate")
        if "weight_decay" in key or key == "mask":
            raise UserError(
                f"{where}={value!r}: is set by config.optimizer.weight_decay, and a tower's own by "
                "config.optimizer.vision.weight_decay and config.optimizer.text.weight_decay"
            )
        if key in set_by_us or (key not in parameters and not takes_any):
            near = difflib.get_close_matches(str(key), parameters, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(parameters)}"
            raise UserError(f"{where}={value!r}: {config.name} has no such argument; {hint}")
        if key in parameters:
            _check_kind(where, value, parameters[key].default)
        options[key] = _as_tuples(value)
    rate = options.pop("adam_learning_rate", None)
    if rate is not None and not (isinstance(rate, int | float) and rate > 0):
        raise UserError(f"{OPTIONS}.adam_learning_rate={rate!r}: must be a number above 0")
    return options


def _check_kind(where: str, value: Any, default: Any) -> None:
    """Raises `UserError` for a value whose type differs from that of the argument's default."""
    kinds = {bool: "True or False", int: "a number", float: "a number", str: "a text"}
    wanted = kinds.get(type(default))
    if wanted is not None and kinds.get(type(value)) != wanted:
        raise UserError(f"{where}={value!r}: must be {wanted} (by default {default!r})")


def muon_rate(config: OptimizerConfig, params: Any) -> Any:
    """Learning rate multipliers of Adam's part of muon: a tree of float like `params`.

    They are 1 for muon's matrices, and everywhere under other optimizers.
    """
    rate = (config.options or {}).get("adam_learning_rate")
    if config.name != "muon" or rate is None:
        return jax.tree.map(lambda _: 1.0, params)
    ratio = rate / config.learning_rate
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: ratio if _matrix_axes(path_of(path), leaf) is None else 1.0, params
    )


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _rehearse(optimizer: optax.GradientTransformation) -> None:
    """Traces one update of a tiny model, without allocating it; raises what optax raises."""
    kernel = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
    blocks = {"transformer": {"blocks": {"mlp": {"in": {"kernel": kernel}}}}}
    scale = jax.ShapeDtypeStruct((), jnp.float32)
    params = {"vision": blocks, "logit_scale": scale}
    updates = jax.eval_shape(lambda p: optimizer.update(p, optimizer.init(p), p)[0], params)
    if jax.tree.map(jnp.shape, updates) != jax.tree.map(jnp.shape, params):
        raise ValueError("its updates have other shapes than the parameters")


class ByLayerState(NamedTuple):
    """State of `by_layer`; leaves in the states of stacks have a leading layer axis."""

    stacks: dict[str, Any]  # by tower
    rest: Any


def by_layer(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Applies `inner` to each layer of stacked blocks separately, as to unstacked blocks."""

    def only(tree: Any, stack: str | None) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if stack_of(path_of(path)) == stack else optax.MaskedNode(),
            tree,
        )

    def init(params: Any) -> ByLayerState:
        leaves = jax.tree_util.tree_flatten_with_path(params)[0]
        stacks = dict.fromkeys(stack_of(path_of(path)) for path, _ in leaves)
        return ByLayerState(
            {name: jax.vmap(inner.init)(only(params, name)) for name in stacks if name},
            inner.init(only(params, None)),
        )

    def update(updates: Any, state: ByLayerState, params: Any = None) -> tuple[Any, ByLayerState]:
        done, rest = inner.update(only(updates, None), state.rest, only(params, None))
        found = dict(jax.tree_util.tree_flatten_with_path(done)[0])
        stacks = {}
        for name, before in state.stacks.items():
            done, stacks[name] = jax.vmap(inner.update)(
                only(updates, name), before, only(params, name)
            )
            found |= dict(jax.tree_util.tree_flatten_with_path(done)[0])
        merged = jax.tree_util.tree_map_with_path(lambda path, _: found[path], updates)
        return merged, ByLayerState(stacks, rest)

    return optax.GradientTransformation(init, update)
