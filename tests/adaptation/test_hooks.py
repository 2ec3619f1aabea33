"""Arrays enter the towers: they change nothing at first, then what the papers' equations say."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import textbook_towers
from tiny_clip import random_params, tiny_architecture

from clip_jax.adaptation.additions import (
    Bottleneck,
    Prefix,
    Prompts,
    Selected,
    init_bottleneck,
    init_prefix,
    init_prompts,
    init_selected,
)
from clip_jax.adaptation.low_rank import TARGETS, LowRank, init_low_rank, merged
from clip_jax.adaptation.towers import encode
from clip_jax.adaptation.tree import Adapter, flat, with_separate_blocks, with_stacked_blocks
from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.two_tower import init_params

KEY = jax.random.key(0)
BOTH = ("vision", "text")
DEEP = Prompts(2, depth=9, towers=BOTH)  # of two blocks
ALL = LowRank(rank=3, targets=tuple(TARGETS), alpha=2.0)
METHODS: dict[str, Any] = {
    "low_rank": lambda config, params: init_low_rank(params, ALL, KEY),
    "dora": lambda config, params: init_low_rank(params, LowRank(magnitude=True), KEY),
    "bottleneck": lambda config, params: init_bottleneck(params, Bottleneck(5), KEY),
    "prompts": lambda config, params: init_prompts(config, params, DEEP, KEY),
    "prefix": lambda config, params: init_prefix(config, params, Prefix(3), KEY),
    "biases": lambda config, params: init_selected(params, Selected((".*bias",))),
}


@functools.cache
def model(**changes: Any) -> tuple[Any, Any]:
    config = tiny_architecture(**changes)
    return config, random_params(config)


def inputs(config: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    size = config.image_size
    tokens = rng.integers(1, config.vocab_size - 1, (3, config.context_length))
    tokens[:, -2] = config.vocab_size - 1
    images = rng.normal(size=(2, size, size, 3)).astype(np.float32)
    return {"vision": images, "text": tokens.astype(np.int32)}


def filled(adapter: Adapter) -> Adapter:
    """Random values in every leaf, near those that it has."""
    rng = np.random.default_rng(2)
    noise = {path: rng.normal(0, 0.2, np.shape(leaf)) for path, leaf in adapter.items()}
    return {path: jnp.asarray(adapter[path] + noise[path], jnp.float32) for path in adapter}


def encoded(config: Any, params: Any, adapter: Adapter, scale: float = 1.0) -> dict[str, Any]:
    given = inputs(config)

    @jax.jit
    def run(adapter: Adapter) -> dict[str, jax.Array]:
        towers = given.items()
        return {t: encode(config, params, adapter, jnp.asarray(x), t, scale) for t, x in towers}

    return {tower: np.asarray(embeds) for tower, embeds in run(adapter).items()}


@pytest.mark.parametrize("name", ["low_rank", "bottleneck", "prompts", "prefix"])
def test_the_forward_pass_is_that_of_the_equations(name: str) -> None:
    config, params = model()
    adapter = filled(METHODS[name](config, params))
    found = encoded(config, params, adapter, ALL.scale)
    exact = {path: np.asarray(leaf, np.float64) for path, leaf in flat(params).items()}
    added = {path: np.asarray(leaf, np.float64) for path, leaf in adapter.items()}
    one = {"vision": textbook_towers.encode_image, "text": textbook_towers.encode_text}
    for tower, values in inputs(config).items():
        expected = np.stack([one[tower](x, exact, added, config, ALL.scale) for x in values])
        bare = np.stack([one[tower](x, exact, {}, config) for x in values])
        assert np.abs(found[tower] - expected).max() < 1e-6 * np.abs(expected).max()
        assert np.abs(bare - expected).max() > 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize("name", ["low_rank", "dora", "bottleneck", "biases"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_at_first_nothing_changes(name: str, kind: str) -> None:
    config, params = model(vision__kind=kind)
    if kind == "resnet" and name == "bottleneck":
        adapter = init_bottleneck(params, Bottleneck(5, towers=("text",)), KEY)
    elif kind == "resnet" and name == "low_rank":
        adapter = init_low_rank(params, LowRank(targets=("query", "mlp"), towers=("text",)), KEY)
    else:
        adapter = METHODS[name](config, params)
    bare, found = encoded(config, params, {}), encoded(config, params, adapter, ALL.scale)
    for tower in BOTH:
        assert np.abs(found[tower] - bare[tower]).max() < 1e-6 * np.abs(bare[tower]).max()


@pytest.mark.parametrize("name", ["low_rank", "dora", "biases"])
def test_merged_is_unmerged(name: str) -> None:
    config, params = model()
    adapter = filled(METHODS[name](config, params))
    found = encoded(config, params, adapter, ALL.scale)
    whole = encoded(config, merged(params, adapter, ALL.scale), {})
    for tower in BOTH:
        assert np.abs(found[tower] - whole[tower]).max() < 2e-6 * np.abs(whole[tower]).max()


@pytest.mark.parametrize(
    ("name", "remat"),
    [*((name, "none") for name in METHODS), ("low_rank", "full"), ("prompts", "full")],
)
def test_every_leaf_of_an_adapter_has_a_gradient(name: str, remat: str) -> None:
    """Also where blocks are computed again in the backward pass; by finite differences."""
    config, params = model(remat=remat)
    adapter = filled(METHODS[name](config, params))
    given = inputs(config)
    weights = {t: np.random.default_rng(3).normal(size=config.embed_dim) for t in BOTH}

    @jax.jit
    def loss(adapter: Adapter) -> jax.Array:
        embeds = [encode(config, params, adapter, jnp.asarray(x), t) for t, x in given.items()]
        return sum((e @ weights[t]).sum() for e, t in zip(embeds, given, strict=True))

    gradients = jax.jit(jax.grad(loss))(adapter)
    assert not [path for path, gradient in gradients.items() if not np.abs(gradient).max()]
    direction = {p: np.random.default_rng(4).normal(size=np.shape(x)) for p, x in adapter.items()}
    step = 1e-3

    def moved(sign: int) -> float:
        return float(loss({p: x + sign * step * direction[p] for p, x in adapter.items()}))

    if name == "dora":  # its norm has no gradient; PEFT's is the reference
        return
    by_differences = (moved(1) - moved(-1)) / (2 * step)
    by_gradient = sum(float((gradients[p] * direction[p]).sum()) for p in adapter)
    assert by_gradient == pytest.approx(by_differences, rel=2e-2)


def test_dropout_is_of_the_updates_only() -> None:
    config, params = model()
    images = jnp.asarray(inputs(config)["vision"])
    adapter = init_low_rank(params, ALL, KEY)
    drop = functools.partial(encode, config, params, scale=1.0, dropout=0.5)
    bare = encode(config, params, {}, images, "vision")
    assert (drop(adapter=adapter, inputs=images, tower="vision", key=KEY) == bare).all()
    some = filled({path: leaf for path, leaf in adapter.items() if "projection" not in path})
    one, same, other = (
        drop(adapter=some, inputs=images, tower="vision", key=jax.random.key(n)) for n in (1, 1, 2)
    )
    assert (one == same).all()
    assert np.abs(one - other).max() > 1e-3


def test_stacked_blocks_are_taken_apart_and_put_together() -> None:
    config, params = model()
    stacked_config, stacked = model(scan_layers=True)
    apart_config, apart = with_separate_blocks(stacked_config, stacked)
    assert apart_config == config
    assert flat(apart).keys() == flat(params).keys()
    again = with_stacked_blocks(apart, stacked)
    assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), again, stacked))


def test_numbers_of_trained_values() -> None:
    config, params = model()
    width, layers = 32, 2
    count = {n: sum(np.size(x) for x in METHODS[n](config, params).values()) for n in METHODS}
    assert count["bottleneck"] == 2 * layers * 2 * (2 * width * 5 + 5 + width)
    assert count["prompts"] == 2 * width * (2 + 1)
    assert count["prefix"] == 2 * layers * 2 * 3 * width
    assert count["dora"] == 2 * layers * 3 * (2 * 2 * width + width)


def test_clip_lora_trains_184_320_values_of_a_vit_b16() -> None:
    config = get_architecture("ViT-B-16")

    def make() -> Adapter:
        return init_low_rank(init_params(config, KEY), LowRank(), KEY)

    assert sum(leaf.size for leaf in jax.eval_shape(make).values()) == 184_320


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda c, p: init_low_rank(p, LowRank(rank=33), KEY), "rank=33.*at most 32"),
        (lambda c, p: init_low_rank(p, LowRank(targets=("keys",)), KEY), "'keys'.*query, key"),
        (
            lambda c, p: init_low_rank(p, LowRank(targets=("gate_",)), KEY),
            "accepted are query",
        ),
        (lambda c, p: init_selected(p, Selected(("vision/none",))), "matches no parameter"),
        (lambda c, p: init_bottleneck(p, Bottleneck(0), KEY), "width=0"),
    ],
)
def test_mistakes_are_one_line(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make(*model())


def test_a_resnet_has_no_blocks_for_tokens() -> None:
    config, params = model(vision__kind="resnet")
    with pytest.raises(UserError, match="vision tower has no Transformer blocks"):
        init_prompts(config, params, Prompts(), KEY)
    with pytest.raises(UserError, match="have no such map; they have"):
        init_low_rank(params, LowRank(targets=("mlp",), towers=("vision",)), KEY)
