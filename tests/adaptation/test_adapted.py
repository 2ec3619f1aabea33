"""Models with adapters: loaded, switched, weighted, saved in both layouts, merged, refused."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_clip import random_params, tiny, tiny_architecture

import clip_jax
from clip_jax.adaptation.additions import Prompts, init_prompts
from clip_jax.adaptation.folder import Adaptation, hash_of_base, weighted, write_adaptation
from clip_jax.adaptation.low_rank import LowRank, init_low_rank
from clip_jax.adapted import AdaptedClip
from clip_jax.clip import Clip
from clip_jax.errors import UserError

OPTIONS = LowRank(rank=2, targets=("query", "out", "mlp"), alpha=3.0)


def low_rank(clip: Clip, seed: int = 0) -> Adaptation:
    start = init_low_rank(clip.params, OPTIONS, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    leaves = {p: np.asarray(x + rng.normal(0, 0.2, x.shape), np.float32) for p, x in start.items()}
    return Adaptation(leaves, OPTIONS.scale, "lora", "base", hash_of_base(clip.params))


def prompts(clip: Clip) -> Adaptation:
    leaves = init_prompts(clip.config, clip.params, Prompts(2, depth=2), jax.random.key(0))
    many = {path: 20 * np.asarray(leaf) for path, leaf in leaves.items()}
    return Adaptation(many, 1.0, "vpt_deep", "base", hash_of_base(clip.params))


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny().save(folder)
    return folder


@pytest.mark.parametrize("make", [low_rank, prompts])
def test_an_adapter_is_loaded_with_its_model(base: Path, tmp_path: Path, make: Any) -> None:
    plain = clip_jax.load(base)
    adapted = AdaptedClip(plain, dataclasses.replace(make(plain), base=str(base)))
    assert np.abs(adapted.encode_image(images()) - plain.encode_image(images())).max() > 0.01
    adapted.save_adapter(tmp_path / "adapter")
    again = clip_jax.load(base, adapter=tmp_path / "adapter")
    assert (again.encode_image(images()) == adapted.encode_image(images())).all()
    # A run of clip_jax.adapt is a folder with an adapter in it.
    assert (clip_jax.load(tmp_path).encode_image(images()) == adapted.encode_image(images())).all()


def test_stacked_and_separate_blocks_are_the_same_base(base: Path, tmp_path: Path) -> None:
    plain = clip_jax.load(base)
    AdaptedClip(plain, low_rank(plain)).save_adapter(tmp_path / "adapter")
    found = [
        clip_jax.load(base, adapter=tmp_path / "adapter", scan_layers=scanned)
        for scanned in (False, True)
    ]
    assert found[1].config.scan_layers
    one, other = (clip.encode_image(images()) for clip in found)
    assert np.abs(one - other).max() < 1e-6


def test_adapters_take_turns_on_one_base() -> None:
    clip = tiny()
    first, second = low_rank(clip, 1), low_rank(clip, 2)
    one = AdaptedClip(clip, first).encode_image(images())
    AdaptedClip(clip, second)
    assert (AdaptedClip(clip, first).encode_image(images()) == one).all()
    # A sum of updates: in float64, of every kernel.
    both = AdaptedClip(clip, weighted([first, second], [0.25, -1.5], clip.params))
    path = ("vision", "transformer", "blocks_1", "mlp", "in", "kernel")

    def kernel(clip: Clip) -> np.ndarray:
        leaf = clip.params
        for part in path:
            leaf = leaf[part]
        return np.asarray(leaf, np.float64)

    def change(one: Adaptation) -> np.ndarray:
        return kernel(AdaptedClip(clip, one)) - kernel(clip)

    expected = kernel(clip) + 0.25 * change(first) - 1.5 * change(second)
    assert np.abs(kernel(both) - expected).max() < 1e-6


def test_an_adapter_is_merged_into_every_format(base: Path, tmp_path: Path) -> None:
    plain = clip_jax.load(base)
    adapted = AdaptedClip(plain, low_rank(plain))
    for format in ("clip_jax", "open_clip"):
        adapted.save(tmp_path / format, format=format)
        again = clip_jax.load(tmp_path / format)
        assert np.abs(again.encode_image(images()) - adapted.encode_image(images())).max() < 1e-6
    with pytest.raises(UserError, match=r"vpt_deep.*not merged.*vision/prompts"):
        AdaptedClip(plain, prompts(plain)).save(tmp_path / "none")
    with pytest.raises(UserError, match="vpt_deep"):
        AdaptedClip(plain, prompts(plain)).image_features(images())


def test_a_head_knows_its_classes() -> None:
    clip = tiny()
    rng = np.random.default_rng(0)
    features, labels = clip.encode_image(images()), np.array([0, 1, 2, 0, 1])
    classifier = rng.normal(size=(16, 3)).astype(np.float32)
    adapter = {
        "head/params/keys_ND": features,
        "head/params/values_NC": np.eye(3, dtype=np.float32)[labels],
        "head/options/alpha": np.float32(2),
        "head/options/beta": np.float32(5),
        "head/options/scale": np.float32(1.5),
        "head/classifier": classifier,
    }
    classes = ("cat", "dog", "owl")
    adapted = AdaptedClip(clip, Adaptation(adapter, method="tip_adapter", classes=classes))
    assert adapted.knows_only_classes
    found = adapted.classify(images(), ["owl", "cat"])
    cache = np.exp(-5 * (1 - features.astype(np.float64) @ features.T)) @ np.eye(3)[labels]
    logits = (1.5 * features @ classifier + 2 * cache)[:, [2, 0]]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(found - expected).max() < 1e-5
    with pytest.raises(UserError, match="class 'cow': is none of the 3 that tip_adapter learned"):
        adapted.classify(images(), ["cow"])
    with pytest.raises(UserError, match="head/classifier"):
        adapted.save("nowhere")


def test_mistakes_are_one_line(base: Path, tmp_path: Path) -> None:
    plain = clip_jax.load(base)
    AdaptedClip(plain, low_rank(plain)).save_adapter(tmp_path / "adapter")
    config = tiny_architecture()
    params = random_params(config)
    params["logit_scale"] = jnp.asarray(1.5)
    Clip(config, params).save(tmp_path / "other")
    with pytest.raises(UserError, match=r"is of base with hash .*; this is .* with hash"):
        clip_jax.load(tmp_path / "other", adapter=tmp_path / "adapter")
    with pytest.raises(UserError, match=r"neither adapter.json nor PEFT's"):
        clip_jax.load(base, adapter=tmp_path / "none")
    with pytest.raises(UserError, match="no adapter to save"):
        plain.save_adapter(tmp_path / "none")
    with pytest.raises(UserError, match="format='bin': choose clip_jax or peft"):
        clip_jax.load(base, adapter=tmp_path / "adapter").save_adapter(tmp_path / "b", "bin")
    with pytest.raises(UserError, match=r"is an adapter .*load the model that it is for"):
        clip_jax.load(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"this is .* with hash"):
        AdaptedClip(clip_jax.load(tmp_path / "other"), low_rank(plain))
    with pytest.raises(UserError, match="several models"):
        weighted(
            [low_rank(plain), dataclasses.replace(low_rank(plain), base_hash="0")],
            [1, 2],
            plain.params,
        )
    deep = init_prompts(plain.config, plain.params, Prompts(1, 2, ("text",)), jax.random.key(0))
    with pytest.raises(UserError, match="encode_text: method 'ivlp'"):
        AdaptedClip(plain, Adaptation(deep, method="ivlp")).encode_text(["a"])
    with pytest.raises(UserError, match="1 adapters and 2 weights"):
        weighted([low_rank(plain)], [1, 2], plain.params)
    with pytest.raises(UserError, match=r"vision/prompts.*cannot be weighted"):
        weighted([prompts(plain)], [1], plain.params)
    (tmp_path / "adapter" / "adapter.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        clip_jax.load(base, adapter=tmp_path / "adapter")
    write_adaptation(tmp_path / "adapter", low_rank(plain))
