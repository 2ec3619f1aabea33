"""`Clip`: every method of the public interface, and the bundle on disk."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_clip import TINY, assert_same_params, nested

import clip_jax
import clip_jax.clip
from clip_jax.data.sources import glyphs
from clip_jax.errors import UserError
from clip_jax.losses import similarity_logits

NAMES = ["latin small letter a", "rightwards arrow", "digit seven"]


@pytest.fixture(scope="module")
def clip(tiny_run: Path) -> clip_jax.Clip:
    return clip_jax.load(tiny_run)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    source = glyphs.open_glyphs("test")
    return [source[index].image for index in range(0, 700, 100)]


@pytest.mark.slow
def test_embeddings_are_those_of_the_model(clip: clip_jax.Clip, pictures) -> None:
    images = np.stack([clip.transform(picture) for picture in pictures])
    mean, std = (np.float32(x) for x in (clip.config.image_mean, clip.config.image_std))
    tokens = clip.tokenizer(NAMES)
    assert tokens.shape == (3, clip.config.context_length)
    assert tokens.dtype == np.int32
    output = clip.model.apply({"params": clip.params}, (images / 255.0 - mean) / std, tokens)
    embeds = clip.encode_image(pictures)
    assert embeds.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(embeds, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embeds, output.image_embeds, atol=1e-5)
    np.testing.assert_allclose(clip.encode_text(NAMES), output.text_embeds, atol=1e-5)
    logits = similarity_logits(output.image_embeds, output.text_embeds, output.logit_scale)
    np.testing.assert_allclose(clip.logits(images, NAMES), logits, rtol=1e-4, atol=1e-3)
    raw = clip.encode_text(NAMES, normalize=False)
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.all(np.abs(norms - 1) > 1e-3)
    np.testing.assert_allclose(raw / norms, output.text_embeds, atol=1e-5)


def test_features_before_the_projection(clip: clip_jax.Clip, pictures) -> None:
    features = clip.encode_image(pictures, normalize=False, projected=False)
    assert features.shape == (len(pictures), clip.config.vision.width)
    projection = clip.params["vision"]["projection"]
    embeds = clip.encode_image(pictures, normalize=False)
    np.testing.assert_allclose(features @ projection, embeds, rtol=1e-4, atol=1e-5)


def test_classify_is_the_softmax_of_prompt_ensembles(clip: clip_jax.Clip, pictures) -> None:
    # Prompts outgrow the 12 ids of this model.
    clip = clip_jax.Clip(clip.config, clip.params, clip.tokenizer.with_truncation(True))
    probabilities = clip.classify(pictures, NAMES, templates=["{}", "the {}"])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    columns = []
    for name in NAMES:
        mean = clip.encode_text([name, f"the {name}"]).astype(np.float64).mean(axis=0)
        columns.append(mean / np.linalg.norm(mean))
    scale = np.exp(float(clip.params["logit_scale"]))
    logits = scale * clip.encode_image(pictures) @ np.stack(columns, axis=1)
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    classifier = clip.zero_shot_classifier(NAMES)
    assert classifier.shape == (clip.config.embed_dim, 3)
    np.testing.assert_allclose(np.linalg.norm(classifier, axis=0), 1, atol=1e-5)


def test_save_and_load_are_bit_equal(clip: clip_jax.Clip, tmp_path: Path) -> None:
    clip.save(tmp_path / "copy")
    again = clip_jax.load(str(tmp_path / "copy"))
    assert again.config == clip.config
    assert_same_params(again.params, clip.params)
    np.testing.assert_array_equal(again.tokenizer(NAMES), clip.tokenizer(NAMES))
    np.testing.assert_array_equal(again.encode_text(NAMES), clip.encode_text(NAMES))
    again.save(tmp_path / "copy")  # over an export of ours
    for name, file in (("other", "precious.txt"), ("copy", "notes.txt")):  # the latter: among ours
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / file).write_text("mine")
        with pytest.raises(UserError, match="holds other files"):
            clip.save(tmp_path / name)
        assert (tmp_path / name / file).read_text() == "mine"


def test_load_from_run_checkpoint_and_export(clip: clip_jax.Clip, tiny_run: Path) -> None:
    reference = clip.encode_text(NAMES)
    checkpoints = tiny_run / "checkpoints"
    for source in (tiny_run / "model", checkpoints, checkpoints / "40"):
        loaded = clip_jax.load(source)
        assert loaded.num_parameters == clip.num_parameters
        np.testing.assert_array_equal(loaded.encode_text(NAMES), reference)
    earlier = clip_jax.load(checkpoints / "30")
    assert not np.array_equal(earlier.encode_text(NAMES), reference)


def test_bfloat16(clip: clip_jax.Clip, tiny_run: Path) -> None:
    half = clip_jax.load(tiny_run, dtype="bfloat16")
    kinds = {str(leaf.dtype) for leaf in jax.tree.leaves(half.params)}
    assert kinds == {"bfloat16", "float32"}  # the logit scale stays float32
    embeds = half.encode_text(NAMES)
    assert embeds.dtype == np.float32
    np.testing.assert_allclose((embeds * clip.encode_text(NAMES)).sum(axis=1), 1, atol=1e-2)
    with pytest.raises(UserError, match="float16"):
        clip_jax.load(tiny_run, dtype="float16")


def test_create(tmp_path: Path) -> None:
    small = nested(TINY)
    one, same, other = (clip_jax.create("ViT-B-32", seed=s, **small) for s in (0, 0, 1))
    assert one.num_parameters == clip_jax.count_parameters("ViT-B-32", **small)
    equal = jax.tree.map(np.array_equal, one.params, same.params)
    assert all(jax.tree.leaves(equal))
    assert not np.array_equal(
        one.params["vision"]["projection"], other.params["vision"]["projection"]
    )
    with pytest.raises(UserError, match="no tokenizer"):
        one.tokenizer(["a"])
    one.save(tmp_path / "bare")  # a model without tokenizer files loads all the same
    assert clip_jax.load(tmp_path / "bare").num_parameters == one.num_parameters
    with pytest.raises(UserError, match="did you mean 'image_size'"):
        clip_jax.create("ViT-B-32", image_siz=32)


def test_tokenizer_must_fit(clip: clip_jax.Clip) -> None:
    with pytest.raises(UserError, match="vocab_size=8 of custom: the tokenizer has"):
        clip_jax.create("custom", tokenizer=clip.tokenizer, vocab_size=8, vision={"layers": 1})


def test_fingerprint_is_of_every_parameter() -> None:
    small = {"image_size": 16, "embed_dim": 8, "vocab_size": 64, "context_length": 8}
    tower = {"width": 8, "layers": 1, "heads": 2, "mlp_dim": 8}
    one, same, other = (
        clip_jax.create("custom", seed=seed, **small, vision={**tower, "patch_size": 8}, text=tower)
        for seed in (0, 0, 1)
    )
    assert one.fingerprint == same.fingerprint != other.fingerprint
    params = jax.tree.map(np.array, one.params)
    params["logit_scale"] = params["logit_scale"] + np.float32(1e-6)
    assert clip_jax.clip.Clip(one.config, params).fingerprint != one.fingerprint


def test_damaged_bundles_are_named(clip: clip_jax.Clip, tmp_path: Path) -> None:
    clip.save(tmp_path / "m")
    about = json.loads((tmp_path / "m" / "config.json").read_text())
    (tmp_path / "m" / "config.json").write_text(json.dumps(about | {"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        clip_jax.load(tmp_path / "m")
    for change, message in (
        ({"embed_dim": 5}, "of another shape: text/projection"),
        ({"text": {"layers": 2}}, "blocks_1"),
        ({"colour": 2}, "colour"),
    ):
        changed = about | {"architecture": about["architecture"] | change}
        (tmp_path / "m" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(UserError, match=message):
            clip_jax.load(tmp_path / "m")


@pytest.mark.parametrize(
    "text",
    [
        {"causal": True, "pool": "eos", "eos_id": 255},
        {"causal": False, "pool": "argmax"},
        {"kind": "bert", "pool": "mean", "pad_id": 0},
    ],
    ids=str,
)
def test_batches_by_length_change_nothing(text: dict[str, Any]) -> None:
    """Many texts at once, some repeated, equal each padded to the whole context."""
    shape = {"width": 16, "layers": 1, "heads": 2, "mlp_dim": 32}
    rng = np.random.default_rng(0)
    tokens = np.zeros((50, 40), np.int32)
    for row in tokens:
        length = int(rng.integers(1, 31))
        row[:length] = rng.integers(1, 200, length)
        row[length] = 255
    tokens[40:] = tokens[:10]

    class Tokenizer:
        vocab_size, context_length = 256, 40

        def __call__(self, texts: list[str], truncate: bool | None = None) -> np.ndarray:
            return tokens[[int(text) for text in texts]]

    small = {"image_size": 16, "embed_dim": 8, "context_length": 40, "vocab_size": 256}
    vision = {"patch_size": 8, "width": 16, "layers": 1, "heads": 2, "mlp_dim": 16}
    clip = clip_jax.create("custom", **small, vision=vision, text={**shape, **text})
    clip = clip_jax.clip.Clip(clip.config, clip.params, Tokenizer())  # type: ignore[arg-type]
    names = [str(number) for number in range(50)]
    together = clip.encode_text(names, batch_size=8)
    apart = np.concatenate([clip.encode_text([name], batch_size=8) for name in names])
    np.testing.assert_allclose(together, apart, atol=1e-6)
