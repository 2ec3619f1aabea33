"""Learned words of class prompts: where they stand, and what the text tower makes of them."""

import functools

import jax
import numpy as np
import pytest
import textbook_towers
from letters import END, Letters
from tiny_clip import random_params, tiny_architecture

from clip_jax.adaptation.context import (
    WORDS,
    Context,
    class_prompts,
    first_words,
    init_context,
    with_words,
)
from clip_jax.adaptation.folder import Adaptation
from clip_jax.adaptation.towers import encode
from clip_jax.adaptation.tree import flat
from clip_jax.adapted import AdaptedClip
from clip_jax.clip import Clip
from clip_jax.errors import UserError

NAMES = ("cat", "big dog", "x")
KEY = jax.random.key(0)


@functools.cache
def model(pool: str = "argmax"):  # type: ignore[no-untyped-def]
    config = tiny_architecture(context_length=24, text__pool=pool, text__eos_id=END)
    return config, random_params(config)


@pytest.mark.parametrize("pool", ["argmax", "eos"])
def test_the_words_stand_before_the_name(pool: str) -> None:
    """Against the equations, with the words in the place of token embeddings."""
    config, params = model(pool)
    prompts = class_prompts(config, Letters(), NAMES, 4)
    words = {WORDS: np.random.default_rng(0).normal(size=(4, config.text.width))}
    small, others = with_words(params, {WORDS: words[WORDS].astype(np.float32)}, prompts.rows)
    assert not others
    found = np.asarray(encode(prompts.config, small, {}, prompts.tokens_KL, "text"))
    exact = {path: np.asarray(leaf, np.float64) for path, leaf in flat(params).items()}
    table = np.concatenate([exact["text/token_embedding"], words[WORDS]])
    plain = Letters(20)([f"{name}." for name in NAMES])
    in_words = np.arange(60, 64)
    for row, expected_row in zip(plain, found, strict=True):
        tokens = np.concatenate([row[:1], in_words, row[1:]])
        at = int(np.argmax(tokens == END))
        x = table[tokens] + exact["text/positions"][:24]
        x = textbook_towers.blocks(x, exact, {}, "text", config.text, 1.0)
        pooled = textbook_towers.norm(x[at], exact, "text/final_norm")
        expected = pooled @ exact["text/projection"]
        assert np.abs(expected_row - expected).max() < 2e-6 * np.abs(expected).max()


def test_words_that_say_a_photo_of_a_are_that_prompt() -> None:
    config, params = model()
    tokenizer = Letters()
    start = first_words(tokenizer)
    assert len(start) == len("a photo of a")
    adapter = init_context(params, Context(len(start)), KEY, start)
    prompts = class_prompts(config, tokenizer, ("cat", "x"), len(start))
    small, _ = with_words(params, adapter, prompts.rows)
    found = np.asarray(encode(prompts.config, small, {}, prompts.tokens_KL, "text"))
    tokens = tokenizer(["a photo of acat.", "a photo of ax."])
    expected = np.asarray(encode(config, params, {}, tokens, "text"))
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_a_model_with_learned_words_classifies_by_them() -> None:
    config, params = model()
    clip = Clip(config, params, Letters())
    start = first_words(Letters())
    adapter = init_context(params, Context(len(start)), KEY, start)
    adapted = AdaptedClip(clip, Adaptation(adapter, method="coop_4"))
    expected = clip.zero_shot_classifier(["cat", "x"], ["a photo of a{}."])
    found = adapted.zero_shot_classifier(["cat", "x"], ["{}"])
    assert np.abs(found - expected).max() < 1e-6
    other = {WORDS: -adapter[WORDS]}
    changed = AdaptedClip(clip, Adaptation(other, method="coop_4"))
    assert np.abs(changed.zero_shot_classifier(["cat", "x"]) - expected).max() > 1e-3
    assert adapted.knows_only_classes


def test_numbers_and_random_starts() -> None:
    params = model()[1]
    adapter = init_context(params, Context(16), KEY, [1, 2, 3])
    assert adapter[WORDS].shape == (16, 32)
    assert 0.015 < float(adapter[WORDS].std()) < 0.025


def test_too_many_words() -> None:
    config = model()[0]
    with pytest.raises(UserError, match=r"words=17: the context has 24 tokens; .* at most 16"):
        class_prompts(config, Letters(), NAMES, 17)
    with pytest.raises(UserError, match=r"with 16 learned words before it: text 'big dog.'"):
        class_prompts(config, Letters(), NAMES, 16)
