"""Captions of images by a model with a caption decoder (CoCa): greedy, sampling and beam search.

All shapes are fixed, and one compiled loop over the tokens stops when all captions have ended. A
step runs the text tower and the decoder on one token per row, with cached keys and values of the
earlier tokens and of the image memory.

Shape letters: B images, K beams per image, R rows (B, or B·K with the beams of an image adjacent),
L tokens of a caption, V vocabulary.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.arguments import shown
from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES
from clip_jax.models.attention import CACHE, MEMORY
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import TwoTower, normalize_images

METHODS = ("beam", "greedy", "top_p", "top_k")
BEAM_SCORES = ("log_probability", "logit")
SEEDS = (-(2**31), 2**31 - 1)  # the seed is an argument of the compiled function: 32 bits
_WHOLE, _ANY = (int, np.integer), (int, float, np.integer, np.floating)
_NUMBERS = {  # numeric settings and the types that they accept
    **dict.fromkeys(("max_length", "min_length", "beams", "top_k"), _WHOLE),
    **dict.fromkeys(("top_p", "temperature"), _ANY),
}
NEVER = -1e9  # score of beams that do not exist yet


@dataclasses.dataclass(frozen=True)
class Generation:
    """Settings of caption generation. Lengths count tokens, including the start of text."""

    start_id: int
    eos_id: int
    pad_id: int  # fills captions after their end
    method: Literal["beam", "greedy", "top_p", "top_k"] = "beam"
    max_length: int = 30
    min_length: int = 5  # tokens before the end of text
    beams: int = 6
    # A beam sums up one of these per token; open_clip sums up unnormalised logits.
    beam_scores: Literal["log_probability", "logit"] = "log_probability"
    top_p: float = 0.9  # the most probable tokens that together have this probability
    top_k: int = 50  # number of most probable tokens to draw from
    temperature: float = 1.0  # for "top_p" and "top_k", applied to the tokens that they keep


# (tokens (R, L) int32, position, cache or None at position 0) -> (logits (R, V) float32 after the
# token at that position, cache)
Step = Callable[[jax.Array, Any, Any], tuple[jax.Array, Any]]


class SpecialTokens(Protocol):
    """The part of a tokenizer that tells the start and end tokens of a caption."""

    eos_id: int

    def __call__(self, texts: Sequence[str], /) -> np.ndarray: ...


def generation_settings(config: ClipConfig, tokenizer: SpecialTokens, **changes: Any) -> Generation:
    """Returns `Generation` defaults with `changes` and the ids of the tokenizer's special tokens.

    Raises `UserError` for an invalid value.
    """
    start_id = int(tokenizer([""])[0, 0])
    settings = Generation(start_id, tokenizer.eos_id, config.text.pad_id, **changes)
    check_generation(settings, config)
    return settings


def check_decoder(config: ClipConfig) -> None:
    """Raises `UserError` if a model cannot generate captions."""
    if config.decoder is None:
        rows = ARCHITECTURES.values()
        able = ", ".join(row.name for row in rows if row.decoder is not None and row.text.causal)
        raise UserError(f"{config.name} has no caption decoder; these have one: {able}")
    if not config.text.causal:
        raise UserError(
            f"{config.name}: its text tower sees later tokens (text.causal=False), "
            "so that captions cannot be generated one token after another"
        )


def check_generation(settings: Generation, config: ClipConfig) -> None:
    """Raises `UserError` if a model with a decoder cannot generate with these settings."""
    choices = (("method", METHODS), ("beam_scores", BEAM_SCORES))
    for name, allowed in choices:
        if getattr(settings, name) not in allowed:
            value = getattr(settings, name)
            raise UserError(f"{name}={value!r}: choose one of {', '.join(allowed)}")
    for name, kinds in _NUMBERS.items():
        value = getattr(settings, name)
        if not isinstance(value, kinds) or isinstance(value, bool):
            what = "a number" if float in kinds else "a whole number"
            raise UserError(f"{name}={shown(value)}: must be {what}")
    assert config.decoder is not None
    ranges: tuple[tuple[str, float, float], ...] = (
        ("max_length", 2, config.context_length),
        ("min_length", 1, settings.max_length - 1),
        ("beams", 1, config.decoder.vocab_size // 2),
        ("top_k", 1, math.inf),
        ("top_p", 0, 1),
    )
    for name, lowest, highest in ranges:
        value = getattr(settings, name)
        if not lowest <= value <= highest:
            upper = f"{lowest} to {highest}" if highest < math.inf else f"at least {lowest}"
            raise UserError(f"{name}={value}: must be {upper}")
    if not 0 < settings.temperature < math.inf:
        raise UserError(f"temperature={settings.temperature}: must be above 0")
    if settings.start_id == settings.eos_id:
        raise UserError("captions cannot be generated: the tokenizer has no start-of-text token")


@functools.partial(jax.jit, static_argnames=("config", "settings", "out_sharding"))
def generate_tokens(
    params: Any,
    images: jax.Array,
    seed: jax.Array | int,
    first_image: jax.Array | int,
    config: ClipConfig,
    settings: Generation,
    out_sharding: jax.sharding.NamedSharding | None = None,
) -> jax.Array:
    """(B, S, S, 3) uint8 -> (B, max_length) int32: start, words, end of text, padding.

    Sampling depends only on `seed` and each image's number, counted from `first_image`, not on the
    batch size.
    """
    model = TwoTower(config)
    memory_BNC: Any = model.apply(
        {"params": params}, normalize_images(images, config), method="image_memory"
    )
    next_token_logits = functools.partial(model.apply, method="next_token_logits")
    start_R1 = jnp.full((len(images), 1), settings.start_id, jnp.int32)
    rows = settings.beams if settings.method == "beam" else 1
    padding = ((0, 0), (0, settings.max_length - 1))
    tokens_BL = jnp.pad(start_R1, padding, constant_values=settings.pad_id)
    tokens_RL = jnp.repeat(tokens_BL, rows, axis=0)
    logits_RV, kept = next_token_logits(
        {"params": params}, tokens_RL, jnp.int32(0), memory_BNC, mutable=[CACHE, MEMORY]
    )

    def step(tokens_RL: jax.Array, position: Any, cache: Any) -> tuple[jax.Array, Any]:
        variables = {"params": params, MEMORY: kept[MEMORY], CACHE: cache}
        logits_RV, updated = next_token_logits(
            variables, tokens_RL, position, memory_BNC, mutable=[CACHE]
        )
        return logits_RV, updated[CACHE]

    if settings.method == "beam":
        reorder = functools.partial(_take_rows, axis=int(config.scan_layers))
        captions = _beam_search(step, reorder, logits_RV, kept[CACHE], tokens_RL, settings)
    else:
        images_B = first_image + jnp.arange(len(images))
        keys_B = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(images_B)
        captions = _sample(step, keys_B, logits_RV, kept[CACHE], tokens_RL, settings)
    if out_sharding is None:
        return captions
    return jax.lax.with_sharding_constraint(captions, out_sharding)


def _without_early_end(scores_RV: jax.Array, length: Any, settings: Generation) -> jax.Array:
    """Rules out the end of text while captions are shorter than `min_length`."""
    is_end = jnp.arange(scores_RV.shape[-1]) == settings.eos_id
    return jnp.where((length < settings.min_length) & is_end, -jnp.inf, scores_RV)


def filter_logits(logits_RV: jax.Array, settings: Generation) -> jax.Array:
    """(R, V) -> (R, V) float32: sets tokens that must not be drawn to minus infinity."""
    if settings.method == "top_k":
        count = min(settings.top_k, logits_RV.shape[-1])
        lowest_R1 = jax.lax.top_k(logits_RV, count)[0][:, -1:]
    elif settings.method == "top_p":
        rising_RV = jnp.sort(logits_RV, axis=-1)
        below_RV = jnp.cumsum(jax.nn.softmax(rising_RV, axis=-1), axis=-1)
        dropped_R1 = jnp.sum(below_RV <= 1 - settings.top_p, axis=-1, keepdims=True)
        dropped_R1 = jnp.minimum(dropped_R1, logits_RV.shape[-1] - 1)
        lowest_R1 = jnp.take_along_axis(rising_RV, dropped_R1, axis=-1)
    else:
        lowest_R1 = jnp.max(logits_RV, axis=-1, keepdims=True)
    return jnp.where(logits_RV < lowest_R1, -jnp.inf, logits_RV)


class _Sampling(NamedTuple):
    length: jax.Array  # () int: tokens so far
    tokens_BL: jax.Array
    ended_B: jax.Array
    logits_BV: jax.Array
    cache: Any


def _sample(
    step: Step,
    keys_B: jax.Array,
    logits_BV: jax.Array,
    cache: Any,
    tokens_BL: jax.Array,
    settings: Generation,
) -> jax.Array:
    """Generates token by token, the most probable or a random one: (B, L) int32.

    As in open_clip, padding also ends a caption, and the last token is always the end of text.
    """

    def unfinished(state: _Sampling) -> jax.Array:
        return (state.length < settings.max_length) & ~state.ended_B.all()

    def body(state: _Sampling) -> _Sampling:
        logits_BV = _without_early_end(state.logits_BV, state.length, settings)
        if settings.method == "greedy":
            next_B = jnp.argmax(logits_BV, axis=-1)
        else:
            logits_BV = filter_logits(logits_BV, settings) / settings.temperature
            now_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, state.length)
            next_B = jax.vmap(jax.random.categorical)(now_B, logits_BV)
        next_B = jnp.where(state.length == settings.max_length - 1, settings.eos_id, next_B)
        next_B = jnp.where(state.ended_B, settings.pad_id, next_B).astype(jnp.int32)
        tokens_BL = state.tokens_BL.at[:, state.length].set(next_B)
        ended_B = state.ended_B | (next_B == settings.eos_id) | (next_B == settings.pad_id)
        logits_BV, cache = step(tokens_BL, state.length, state.cache)
        return _Sampling(state.length + 1, tokens_BL, ended_B, logits_BV, cache)

    ended_B = jnp.zeros(len(tokens_BL), bool)
    start = _Sampling(jnp.int32(1), tokens_BL, ended_B, logits_BV, cache)
    return jax.lax.while_loop(unfinished, body, start).tokens_BL


class _Beams(NamedTuple):
    length: jax.Array  # () int: tokens so far
    tokens_BKL: jax.Array
    scores_BK: jax.Array  # sums over the tokens
    ended_BKL: jax.Array  # the best captions that have ended
    ended_scores_BK: jax.Array  # means over their tokens; minus infinity: none yet
    done_B: jax.Array  # no open beam can still beat the captions that have ended
    logits_RV: jax.Array
    cache: Any


def _take_rows(tree: Any, rows_R: jax.Array, axis: int) -> Any:
    return jax.tree.map(lambda x: jnp.take(x, rows_R, axis=axis), tree)


def _gather(x_BC: jax.Array, chosen_BK: jax.Array) -> jax.Array:
    """(B, C, …), (B, K) int -> (B, K, …)."""
    shape = (*chosen_BK.shape, *[1] * (x_BC.ndim - 2))
    return jnp.take_along_axis(x_BC, chosen_BK.reshape(shape), axis=1)


def _beam_search(
    step: Step,
    reorder: Callable[[Any, jax.Array], Any],
    logits_RV: jax.Array,
    cache: Any,
    tokens_RL: jax.Array,
    settings: Generation,
) -> jax.Array:
    """Finds the caption of the highest mean score with K beams: (B, L) int32.

    The algorithm and its stopping rule are those of transformers' beam search (length penalty 1,
    no early stopping): of the 2 K best continuations, those that end the text become captions if
    they are among the first K, and the first K others become the new beams.
    """
    beams, (rows, longest) = settings.beams, tokens_RL.shape
    images = rows // beams
    by_image_B1 = jnp.arange(images)[:, None]

    def body(state: _Beams) -> _Beams:
        values_BC, beam_BC, token_BC = _continuations(state, settings)
        next_length = state.length + 1
        tokens_BCL = _gather(state.tokens_BKL, beam_BC).at[:, :, state.length].set(token_BC)
        is_end_BC = token_BC == settings.eos_id

        counts_BC = is_end_BC & (jnp.arange(2 * beams) < beams) & ~state.done_B[:, None]
        new_BC = jnp.where(counts_BC, values_BC / next_length, -jnp.inf)
        all_scores = jnp.concatenate([state.ended_scores_BK, new_BC], axis=1)
        ended_scores_BK, best_BK = jax.lax.top_k(all_scores, beams)
        all_tokens = jnp.concatenate([state.ended_BKL, tokens_BCL], axis=1)
        # With fewer than K captions the last score is minus infinity, so the search goes on.
        attainable_B = values_BC[:, 0] / next_length
        done_B = state.done_B | (ended_scores_BK[:, -1] >= attainable_B)

        scores_BK, open_BK = jax.lax.top_k(jnp.where(is_end_BC, -jnp.inf, values_BC), beams)
        tokens_BKL = _gather(tokens_BCL, open_BK)
        rows_R = (by_image_B1 * beams + _gather(beam_BC, open_BK)).reshape(-1)
        cache = reorder(state.cache, rows_R)
        logits_RV, cache = step(tokens_BKL.reshape(rows, longest), state.length, cache)
        ended_BKL = _gather(all_tokens, best_BK)
        return _Beams(
            next_length, tokens_BKL, scores_BK, ended_BKL, ended_scores_BK, done_B, logits_RV, cache
        )

    def unfinished(state: _Beams) -> jax.Array:
        return (state.length < settings.max_length) & ~state.done_B.all()

    tokens_BKL = tokens_RL.reshape(images, beams, longest)
    end = jax.lax.while_loop(
        unfinished,
        body,
        _Beams(
            length=jnp.int32(1),
            tokens_BKL=tokens_BKL,
            scores_BK=jnp.full((images, beams), NEVER).at[:, 0].set(0.0),
            ended_BKL=tokens_BKL,
            ended_scores_BK=jnp.full((images, beams), -jnp.inf),
            done_B=jnp.zeros(images, bool),
            logits_RV=logits_RV,
            cache=cache,
        ),
    )
    # Beams that are still open at the maximum length count as captions too.
    open_BK = jnp.where(end.done_B[:, None], -jnp.inf, end.scores_BK / end.length)
    all_scores = jnp.concatenate([end.ended_scores_BK, open_BK], axis=1)
    all_tokens = jnp.concatenate([end.ended_BKL, end.tokens_BKL], axis=1)
    return _gather(all_tokens, jnp.argmax(all_scores, axis=1, keepdims=True))[:, 0]


def _continuations(state: _Beams, settings: Generation) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the 2 K best continuations of each image's beams, best first.

    They are given by scores, beams that they continue, and tokens that they add, (B, 2 K) each.
    """
    scores_RV = state.logits_RV
    if settings.beam_scores == "log_probability":
        scores_RV = jax.nn.log_softmax(scores_RV, axis=-1)
    scores_RV = _without_early_end(scores_RV, state.length, settings)
    vocab = scores_RV.shape[-1]
    totals_BKV = scores_RV.reshape(*state.scores_BK.shape, vocab) + state.scores_BK[:, :, None]
    flat_BC = totals_BKV.reshape(len(totals_BKV), -1)
    values_BC, chosen_BC = jax.lax.top_k(flat_BC, 2 * settings.beams)
    return values_BC, chosen_BC // vocab, (chosen_BC % vocab).astype(jnp.int32)
