"""Initial parameters of a run: random, or those of another model.

A curriculum is a chain of runs: the second begins with the parameters of the first, at another
image size or context length (Li et al. 2023, CLIPA). Locked-image tuning begins with a trained
image tower and a random text tower (Zhai et al. 2022, LiT).
"""

import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.config import ClipConfig, differences, override
from clip_jax.models.fields import Effect
from clip_jax.models.kinds import KINDS
from clip_jax.sharding import leaves_by_path
from clip_jax.text.tokenizer import Tokenizer, get_tokenizer
from clip_jax.training.config import ModelConfig, TrainConfig
from clip_jax.training.step.adapter import adapter_method
from clip_jax.training.step.parameter_groups import matching
from clip_jax.training.step.state import TrainState, abstract_state, create_state
from clip_jax.weights.load import Source, open_model
from clip_jax.weights.resolve import resolve_source
from clip_jax.weights.rules.table import Rule, Shape, Tensors

SOURCE, ONLY = "config.init.source", "config.init.only"
TOKEN_TABLE, TEXT_POSITIONS = "text/token_embedding", "text/positions"
EVERYTHING = re.compile("")
Read = Callable[[], np.ndarray]


def open_initial(config: TrainConfig) -> Source | None:
    """Opens the model of `config.init.source` without reading its weights; None if there is none.

    Weights that do not name their architecture get the run's own. Raises `UserError` if the source
    cannot be found or is no model, and for `config.init.only` without a source.
    """
    if not config.init.source:
        if config.init.only:
            raise UserError(f"{ONLY}={config.init.only}: chooses from {SOURCE}, which is not given")
        return None
    try:
        path = resolve_source(config.init.source)
        try:
            return open_model(path)
        except UserError:
            named = _open_as(path, config)
            if named is None:
                raise
            return named
    except UserError as error:
        raise UserError(f"{SOURCE}={config.init.source!r}: {error}") from error


def _open_as(path: Path, config: TrainConfig) -> Source | None:
    """Opens bare weights as the run's own architecture; None if that fails too."""
    if config.model.name not in ARCHITECTURES:
        return None
    try:
        source = open_model(path, config.model.name)
    except UserError:
        return None
    return dataclasses.replace(source, config=config.model.architecture())


def with_model_of_source(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with the architecture of its source, if it names no other.

    Raises `UserError` as `open_initial` does, and for fields that this architecture cannot have.
    """
    source = None if config.model.name else open_initial(config)
    if source is None:
        return config
    try:
        fields = override(source.config, **config.model.overrides).to_dict()
    except UserError as error:
        raise UserError(f"config.model.{error}") from error
    return dataclasses.replace(config, model=ModelConfig(fields.pop("name"), fields))


def takes_tokens(config: TrainConfig) -> bool:
    """Whether the token table comes from `config.init.source`, and the vocabulary with it."""
    only = config.init.only
    chosen = not only or any(re.fullmatch(pattern, TOKEN_TABLE) for pattern in only)
    return bool(config.init.source) and chosen


def named_tokenizer(config: TrainConfig) -> Tokenizer:
    """Returns the tokenizer that `config.tokenizer.source` names. Raises `UserError`."""
    try:
        return get_tokenizer(config.tokenizer.source)
    except UserError as error:
        raise UserError(f"config.tokenizer.source={config.tokenizer.source!r}: {error}") from error


def initial_tokenizer(config: TrainConfig, source: Source) -> Tokenizer:
    """Returns the tokenizer of the source's token table.

    By default it is the source's own, even if the run would train one on its captions. Otherwise it
    is the one that `config.tokenizer.source` names, which must have as many ids. Raises `UserError`
    if it has not, or if there is neither.
    """
    rows, named = source.config.vocab_size, config.tokenizer.source
    where = f"{SOURCE}={config.init.source!r}"
    try:
        own = source.tokenizer()
    except UserError as error:  # its files are damaged, or OpenAI's are unavailable
        if named == "captions":
            raise UserError(f"{where}: {error}; or name one by config.tokenizer.source") from error
        own = None
    if named == "captions":
        if own is None:
            raise UserError(
                f"{where}: has no tokenizer, and one trained on the captions would not fit its "
                f"token table; name one by config.tokenizer.source, or leave {TOKEN_TABLE!r} out "
                f"by {ONLY}"
            )
        return own
    tokenizer = named_tokenizer(config)
    ids = f"config.tokenizer.source={named!r}: has {tokenizer.vocab_size} ids"
    if own is not None and own.vocab_size != tokenizer.vocab_size:
        raise UserError(f"{ids}, but the tokenizer of {where} has {own.vocab_size}")
    if tokenizer.vocab_size > rows:
        raise UserError(f"{ids}, but the token table of {where} {rows} rows")
    return tokenizer


def initial_state(
    mesh: Mesh,
    architecture: ClipConfig,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    source: Source,
) -> TrainState:
    """Makes a state whose parameters, all or those of `config.init.only`, come from `source`.

    Tensors go one by one from the file to their shards; only the others get random values. The
    optimizer and the moving average start from the resulting parameters; with `config.adapter` they
    are of the adapter, and the parameters its base.

    If image_size or context_length differs from the source's, its position tables are resized: see
    `fit_text_positions`, and `resize_grid` for the grid of patches.

    Raises `UserError` if a pattern matches nothing, or its parameters do not fit the architecture.
    """
    ema, adapter = config.optimizer.ema_decay is not None, adapter_method(config.adapter)
    abstract = abstract_state(mesh, architecture, optimizer, ema, adapter)
    model = "params" if adapter is None else "base"
    leaves = leaves_by_path(getattr(abstract, model))
    only = config.init.only
    taken = matching(only, leaves, ONLY) if only else frozenset(leaves)
    loaded = _load(config, architecture, source, leaves, taken)

    def fresh() -> dict[str, jax.Array]:
        state = create_state(architecture, optimizer, config.seed, ema=False)
        return {p: leaf for p, leaf in leaves_by_path(state.params).items() if p not in taken}

    shardings = {path: leaf.sharding for path, leaf in leaves.items() if path not in taken}
    random = jax.jit(fresh, out_shardings=shardings)() if shardings else {}
    # The order of `leaves` is that of a fresh state.
    flat = {path: loaded[path] if path in taken else random[path] for path in leaves}
    params = unflatten_dict(flat, sep="/")

    def begin(params: Any) -> TrainState:
        # A step donates its state, so no buffers may be shared.
        copy = jax.tree.map(jnp.copy, params)
        state = create_state(architecture, optimizer, config.seed, ema, adapter, copy)
        return state.replace(**{model: None})

    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract.replace(**{model: None}))
    return jax.jit(begin, out_shardings=shardings)(params).replace(**{model: params})


def load_base(config: TrainConfig, architecture: ClipConfig, abstract: Any) -> Any:
    """Loads the parameters that the run's adapter is for, onto the shards of `abstract`.

    Raises `UserError` if they are not found, or do not fit.
    """
    source, leaves = open_initial(config), leaves_by_path(abstract)
    assert source is not None, "the configuration is checked"
    loaded = _load(config, architecture, source, leaves, frozenset(leaves))
    return unflatten_dict(loaded, sep="/")


def _load(
    config: TrainConfig,
    architecture: ClipConfig,
    source: Source,
    leaves: Mapping[str, jax.ShapeDtypeStruct],
    taken: frozenset[str],
) -> dict[str, jax.Array]:
    """Loads the source's parameters for every path of `taken`, each on its shards."""

    def place(path: str, leaf: np.ndarray) -> jax.Array | None:
        if path not in taken:
            return None
        return jax.make_array_from_callback(
            leaf.shape, leaves[path].sharding, leaf.__getitem__, dtype=leaf.dtype
        )

    if TEXT_POSITIONS in taken:
        source = fit_text_positions(source, architecture)
    if len(taken) < len(leaves):
        source = _without(source, {p: leaf.shape for p, leaf in leaves.items() if p not in taken})
    towers = [name for name in KINDS if any(path.startswith(f"{name}/") for path in taken)]
    where = f"{SOURCE}={config.init.source!r}"
    try:
        loaded = source.params(architecture, "float32", place)
    except (UserError, IndexError) as error:  # IndexError: the source lacks a layer
        sizes = _differences(architecture, source.config, ("shape",), towers)
        raise UserError(
            f"{where}: {f'has {sizes}' if sizes else error}; {ONLY} chooses what is taken"
        ) from error
    function = _differences(architecture, source.config, ("shape", "function", "image"), towers)
    if function:
        logging.warning("%s: was trained with %s", where, function)
    return leaves_by_path(loaded)


def _differences(
    ours: ClipConfig, theirs: ClipConfig, effects: tuple[Effect, ...], towers: list[str]
) -> str:
    """Lists the fields in which the other model's towers differ from these."""
    found = differences(ours, theirs, effects, towers)
    return ", ".join(f"{path}={b!r} (config.model: {a!r})" for path, (a, b) in found.items())


class _Replaced:
    """Tensors of a source, some of them replaced or added."""

    def __init__(self, tensors: Tensors, replaced: Mapping[str, tuple[Shape, Read]]):
        self.where, self._tensors, self._replaced = tensors.where, tensors, replaced
        shapes = {name: shape for name, (shape, _) in replaced.items()}
        self.shapes: Mapping[str, Shape] = {**tensors.shapes, **shapes}

    def read(self, name: str) -> np.ndarray:
        """Returns the tensor of that name."""
        return self._replaced[name][1]() if name in self._replaced else self._tensors.read(name)


def fit_text_positions(source: Source, config: ClipConfig) -> Source:
    """Returns `source` with as many text positions as `config` has.

    The first rows are kept; missing rows are copies of the last one. Texts that fit both lengths
    keep their embeddings, to the bit in a causal tower. Interpolation, as in `clip_jax.load` and
    open_clip, would move all positions, which training would have to undo (Zhang et al. 2024,
    Long-CLIP, keep the first ones likewise). It remains for a tower that reads its feature at the
    last token, whose position must be a trained one at any length (CLIPA's code also interpolates
    between 8 and 32 tokens).
    """
    if config.text.pool in ("last", "appended"):
        return source
    replaced: dict[str, tuple[Shape, Read]] = {}
    for rule in source.rules(config):
        shape = source.tensors.shapes.get(rule.theirs, ())
        rows = config.position_rows
        if rule.ours == TEXT_POSITIONS and rule.resize and len(shape) > 1 and shape[-2] != rows:
            logging.warning("%s: the first of %d positions, now %d", rule.theirs, shape[-2], rows)
            kept = np.minimum(np.arange(rows), shape[-2] - 1)

            def read(name: str = rule.theirs, kept: np.ndarray = kept) -> np.ndarray:
                return np.take(source.tensors.read(name), kept, axis=-2)

            replaced[rule.theirs] = (*shape[:-2], rows, shape[-1]), read
    return dataclasses.replace(source, tensors=_Replaced(source.tensors, replaced))


def _without(source: Source, left_out: Mapping[str, Shape]) -> Source:
    """Returns `source` without the tensors of `left_out`, which need not exist or fit."""
    stubs = {path: f"not taken: {path}" for path in left_out}

    def rules(config: ClipConfig) -> list[Rule]:
        kept = [rule for rule in source.rules(config) if rule.ours not in left_out]
        return [*kept, *(Rule(stub, path) for path, stub in stubs.items())]

    def zeros(shape: Shape) -> Read:
        return lambda: np.broadcast_to(np.float32(0), shape)  # takes no memory

    replaced = {stubs[path]: (shape, zeros(shape)) for path, shape in left_out.items()}
    tensors = _Replaced(source.tensors, replaced)
    return dataclasses.replace(source, tensors=tensors, rules=rules, ignored=EVERYTHING)
