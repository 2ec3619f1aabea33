"""Optimizers of optax and optax.contrib, by name and arguments."""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from clip_jax.errors import UserError, first_line
from clip_jax.training.config import OptimizerConfig
from clip_jax.training.step.parameter_groups import path_of, stack_of

NAME, OPTIONS = "config.optimizer.name", "config.optimizer.options"
FIRST_MOMENT = "config.optimizer.first_moment_dtype"
# Optimizers have these names for settings that a run has in common for all of them.
DECAY_ARGUMENTS = ("weight_decay", "weight_decay_rate", "adam_weight_decay")
MASK_ARGUMENTS = ("mask", "weight_decay_mask")
MOMENT_ARGUMENTS = ("mu_dtype", "accumulator_dtype", "dtype_momentum")
# These have a b1 and b2 that are not the decay rates of Adam's two moments.
OTHER_BETAS = ("adan", "simplified_ademamix")
# These use whole-leaf statistics, which under `scan_layers` would mix all layers of a leaf.
WHOLE_LEAF = ("adafactor", "fromage", "lamb", "lars", "novograd")
# These find their own step size, to which decay by the schedule's would be out of proportion. The
# last three also keep a copy of the initial parameters.
OWN_STEP_SIZE = ("cocob", "dadapt_adamw", "dog", "dowg", "prodigy")
_ELSEWHERE = "is to be evaluated at other parameters than it trains, which a run does not do"
_LOSS = "needs the loss, not only its gradient"
UNFIT = {
    "dpsgd": "needs the gradient of every pair",
    "galore": "projects two-dimensional matrices, which attention's are not",
    "lbfgs": _LOSS,
    "momo": _LOSS,
    "momo_adam": _LOSS,
    "optimistic_adam": "takes no schedule, but optimistic_adam_v2 does",
    "rprop": "takes no schedule",
    "schedule_free": _ELSEWHERE,
    "schedule_free_adamw": _ELSEWHERE,
    "schedule_free_sgd": _ELSEWHERE,
    "sm3": "takes no schedule, and no scalars such as the logit scale",
    "sophia": _LOSS,
}
MAIN = ("adamw", "adafactor", "lion", "muon", "lamb", "sgd")

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


def named_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """Returns the optimizer `config.name` with its options, without weight decay.

    b1, b2 and eps go to Adam's relatives (optimizers with b1 and b2, or betas), except
    `OTHER_BETAS`; the dtype of the first moment goes to all that can choose it. Options add to
    these and override them.

    Muon orthogonalises the queries, keys, values and output of every layer's attention, the
    matrices of every MLP, and convolutions. Adam with the same b1, b2 and eps trains the rest, with
    `adam_learning_rate` (if given) as the peak of the same schedule: see `muon_rate`. Adafactor
    factors the two largest axes of a leaf if both have `min_dim_size_to_factor`, 128 by default:
    MLPs and embeddings, but not attention, whose heads are smaller; with 32 it factors attention
    too, head by head.

    Raises `UserError` that names the key: an unknown optimizer, one that needs more than a schedule
    and gradients, an option that it does not have.
    """
    factory = _factory(config.name)
    parameters = inspect.signature(factory).parameters
    options = _options(config, parameters)
    arguments = _arguments(config, parameters) | options
    try:
        optimizer = factory(learning_rate=schedule, **arguments)
        if config.name in WHOLE_LEAF:
            optimizer = by_layer(optimizer)
        _rehearse(optimizer)
    except UserError:
        raise
    except Exception as error:  # whatever optax or jax makes of an option
        if options:
            defaults = {key: parameters[key].default for key in options}
            raise UserError(
                f"{OPTIONS}={options}: {config.name} cannot take these ({first_line(error)}); by "
                f"default {defaults}"
            ) from error
        raise UserError(
            f"{NAME}={config.name!r}: cannot be built from a learning rate and gradients "
            f"({first_line(error)}); {_accepted()}"
        ) from error
    return optimizer


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


def known_optimizers() -> list[str]:
    """Returns the accepted names: optax's functions of a learning rate, except `UNFIT`."""
    return sorted(
        name
        for module in (optax, optax.contrib)
        for name in dir(module)
        if _is_factory(name, getattr(module, name)) and name not in UNFIT
    )


def _is_factory(name: str, found: Any) -> bool:
    if name.startswith(("_", "scale_by_")) or isinstance(found, type) or not callable(found):
        return False
    try:
        return "learning_rate" in inspect.signature(found).parameters
    except (TypeError, ValueError):  # no signature: a type alias, say
        return False


def _accepted() -> str:
    return f"accepted are {', '.join(MAIN)} and most others of optax"


def _factory(name: str) -> Callable[..., Any]:
    if name in UNFIT:
        raise UserError(f"{NAME}={name!r}: {UNFIT[name]}; {_accepted()}")
    for module in (optax, optax.contrib):
        found = getattr(module, name, None)
        if found is not None and _is_factory(name, found):
            return found
    near = difflib.get_close_matches(name.strip(), known_optimizers(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else _accepted()
    raise UserError(f"{NAME}={name!r}: no optimizer of optax; {hint}")


def _arguments(config: OptimizerConfig, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Translates the run's settings into arguments of this optimizer."""
    name = config.name
    arguments: dict[str, Any] = {}
    if {"b1", "b2"} <= parameters.keys() and name not in OTHER_BETAS:
        arguments |= {"b1": config.b1, "b2": config.b2}
        if "eps" in parameters:
            arguments["eps"] = config.eps
    if "betas" in parameters:
        arguments |= {"betas": (config.b1, config.b2), "eps": config.eps}
    if name == "muon":
        arguments |= {"adam_b1": config.b1, "adam_b2": config.b2, "eps": config.eps}
        arguments["muon_weight_dimension_numbers"] = _muon_dimensions
    moments = [key for key in MOMENT_ARGUMENTS if key in parameters]
    arguments |= {key: jnp.dtype(config.first_moment_dtype) for key in moments}
    if config.first_moment_dtype != "float32" and not moments:
        raise UserError(
            f"{FIRST_MOMENT}={config.first_moment_dtype!r}: {name} cannot choose it; give 'float32'"
        )
    # The run applies decay itself. A default of None, which means no decay, stays.
    for key in DECAY_ARGUMENTS:
        if key in parameters and parameters[key].default is not None:
            arguments[key] = 0.0
    decays = max(config.weight_decay, *(t.weight_decay or 0 for t in (config.vision, config.text)))
    if name in OWN_STEP_SIZE and decays:
        raise UserError(
            f"config.optimizer.weight_decay={decays}: {name} finds its own step size, which decay "
            "by the schedule's would not follow; give 0"
        )
    starts_at_zero = name == "dadapt_adamw" or (
        name == "prodigy" and not (config.options or {}).get("safeguard_warmup")
    )
    if starts_at_zero and config.warmup_steps:
        safe = ", or options={'safeguard_warmup': True}" if name == "prodigy" else ""
        raise UserError(
            f"config.optimizer.warmup_steps={config.warmup_steps}: {name} divides by the learning "
            f"rate, which warm-up begins at 0; give 0{safe}"
        )
    return arguments


def _options(config: OptimizerConfig, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `config.options`, checked against the factory's arguments and their defaults."""
    options = {}
    ours = ("learning_rate", "muon_weight_dimension_numbers", *DECAY_ARGUMENTS, *MASK_ARGUMENTS)
    free = [key for key in parameters if key not in ours]
    for key, value in (config.options or {}).items():
        where = f"{OPTIONS}.{key}"
        if key == "learning_rate":
            raise UserError(f"{where}={value!r}: is set by config.optimizer.learning_rate")
        if key in (*DECAY_ARGUMENTS, *MASK_ARGUMENTS):
            raise UserError(
                f"{where}={value!r}: is set by config.optimizer.weight_decay, and a tower's own by "
                "config.optimizer.vision.weight_decay and config.optimizer.text.weight_decay"
            )
        if key not in free:
            near = difflib.get_close_matches(str(key), free, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(free)}"
            raise UserError(f"{where}={value!r}: {config.name} has no such argument; {hint}")
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
    found = kinds.get(type(value))
    if wanted is not None and found != wanted:
        raise UserError(f"{where}={value!r}: must be {wanted} (by default {default!r})")
    if isinstance(value, Mapping):
        raise UserError(f"{where}={value!r}: must be a number, a text, True, False or None")


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
