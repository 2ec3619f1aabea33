"""`Clip`: every method of the public interface, and the bundle on disk."""

import io
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
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


def test_import_is_cheap_and_touches_no_device() -> None:
    code = "import clip_jax, sys; print('jax' in sys.modules); print(clip_jax.list_models()[0])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "RN50"]


def test_encode_image_takes_every_form(clip: clip_jax.Clip, pictures, tmp_path: Path) -> None:
    expected = clip.encode_image(pictures)
    assert expected.shape == (7, clip.config.embed_dim)
    assert expected.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-5)
    image = Image.fromarray(pictures[0])
    path = tmp_path / "a.png"
    image.save(path)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    for form in (image, path, str(path), buffer.getvalue(), pictures[0]):
        np.testing.assert_allclose(clip.encode_image([form])[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(clip.encode_image(pictures[0])[0], expected[0], atol=1e-5)
    stacked = np.stack([clip.transform(picture) for picture in pictures])
    assert stacked.dtype == np.uint8
    np.testing.assert_allclose(clip.encode_image(stacked), expected, atol=1e-5)
    np.testing.assert_allclose(clip.encode_image(stacked, batch_size=3), expected, atol=1e-5)
    assert clip.encode_image([]).shape == (0, clip.config.embed_dim)
    with pytest.raises(UserError, match=r"\(7, 8, 8, 3\)"):
        clip.encode_image(np.zeros((7, 8, 8, 3), np.uint8))


@pytest.mark.slow
def test_embeddings_are_those_of_the_model(clip: clip_jax.Clip, pictures) -> None:
    images = np.stack([clip.transform(picture) for picture in pictures])
    mean, std = (np.float32(x) for x in (clip.config.image_mean, clip.config.image_std))
    tokens = clip.tokenizer(NAMES)
    assert tokens.shape == (3, clip.config.context_length)
    assert tokens.dtype == np.int32
    output = clip.model.apply({"params": clip.params}, (images / 255.0 - mean) / std, tokens)
    np.testing.assert_allclose(clip.encode_image(images), output.image_embeds, atol=1e-5)
    np.testing.assert_allclose(clip.encode_text(NAMES), output.text_embeds, atol=1e-5)
    logits = similarity_logits(output.image_embeds, output.text_embeds, output.logit_scale)
    np.testing.assert_allclose(clip.logits(images, NAMES), logits, rtol=1e-4, atol=1e-3)
    raw = clip.encode_text(NAMES, normalize=False)
    norms = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.all(np.abs(norms - 1) > 1e-3)
    np.testing.assert_allclose(raw / norms, output.text_embeds, atol=1e-5)


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
    leaves = jax.tree_util.tree_flatten_with_path(clip.params)[0]
    others = dict(jax.tree_util.tree_flatten_with_path(again.params)[0])
    assert len(leaves) == len(others)
    for path, leaf in leaves:
        np.testing.assert_array_equal(np.asarray(leaf), others[path])
    np.testing.assert_array_equal(again.tokenizer(NAMES), clip.tokenizer(NAMES))
    np.testing.assert_array_equal(again.encode_text(NAMES), clip.encode_text(NAMES))
    again.save(tmp_path / "copy")  # over an export of ours
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        clip.save(tmp_path / "other")
    assert (tmp_path / "other" / "precious.txt").read_text() == "mine"
    (tmp_path / "copy" / "notes.txt").write_text("mine")  # put into an export of ours
    with pytest.raises(UserError, match="holds other files"):
        clip.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "notes.txt").read_text() == "mine"
    with pytest.raises(UserError, match="choose one of clip_jax"):
        clip.save(tmp_path / "x", "onnx")


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
    small = {
        "image_size": 32, "embed_dim": 8, "vocab_size": 20,
        "vision": {"patch_size": 16, "width": 16, "layers": 1, "heads": 2, "mlp_dim": 16},
        "text": {"width": 16, "layers": 1, "heads": 2, "mlp_dim": 16},
        "context_length": 4,
    }  # fmt: skip
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


def test_damaged_bundles_are_named(clip: clip_jax.Clip, tmp_path: Path) -> None:
    clip.save(tmp_path / "m")
    about = json.loads((tmp_path / "m" / "config.json").read_text())
    for change, message in (
        ({"version": 99}, "version 99"),
        (
            {"architecture": about["architecture"] | {"embed_dim": 5}},
            "of another shape: text/projection",
        ),
        ({"architecture": about["architecture"] | {"text": {"layers": 2}}}, "blocks_1"),
        ({"architecture": about["architecture"] | {"colour": 2}}, "colour"),
    ):
        (tmp_path / "m" / "config.json").write_text(json.dumps(about | change))
        with pytest.raises(UserError, match=message):
            clip_jax.load(tmp_path / "m")
    with pytest.raises(UserError, match="no such file or folder"):
        clip_jax.load("no-such-model")
    with pytest.raises(UserError, match="no model found; looked for an export"):
        clip_jax.load(tmp_path)
