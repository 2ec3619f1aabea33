"""big_vision's layout against its forward pass restated in float64, in every storage of layers."""

import numpy as np
import pytest
from reference_big_vision import LIT, Arrays, Restated, Sizes, make_file, scanned
from reference_models import assert_close, our_outputs
from tiny_clip import assert_same_params, changed

from clip_jax.errors import UserError
from clip_jax.models.architectures import get_architecture
from clip_jax.models.config import ClipConfig
from clip_jax.weights.files.tensors import open_tensors
from clip_jax.weights.layouts.big_vision import (
    big_vision_rules,
    config_from_big_vision,
    merge_position_tables,
)
from clip_jax.weights.layouts.layout import NOTHING
from clip_jax.weights.rules.table import KINDS, ArrayTensors, our_shapes, read_params, write_tensors

pytestmark = pytest.mark.slow


def config_of(file: Arrays) -> ClipConfig:
    return config_from_big_vision({name: array.shape for name, array in file.items()})


def read(file: Arrays, config: ClipConfig):
    tensors = merge_position_tables(ArrayTensors(file))
    return read_params(config, big_vision_rules(config, tensors.shapes), tensors, NOTHING)


def inputs(config: ClipConfig):
    rng = np.random.default_rng(1)
    size = config.image_size
    images = rng.standard_normal((5, size, size, 3)).astype(np.float32)
    return images, rng.integers(0, config.vocab_size, (5, config.context_length))


@pytest.mark.parametrize("ours", ["looped", "scanned"])
@pytest.mark.parametrize("theirs", ["looped", "scanned"])
def test_same_outputs_however_layers_are_stored(theirs, ours):
    file = make_file(Sizes())
    stored = scanned(file) if theirs == "scanned" else file
    config = config_of(stored)
    config = changed(config, scan_layers=ours == "scanned")
    params = read(stored, config)
    images, tokens = inputs(config)
    assert_close(our_outputs(config, params, images, tokens), Restated(file)(images, tokens))
    if (theirs, ours) != ("scanned", "looped"):  # whose rules index the file's tensors
        back = dict(write_tensors(config, big_vision_rules(config, stored), params))
        assert back.keys() == stored.keys()
        for name, array in stored.items():
            np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize(
    "sizes",
    [
        LIT,
        Sizes(pool="gap", text_head=None, text_width=48),
        Sizes(pool="tok", image_head=24, text_head=24),
    ],
    ids=["lit", "mean of patches, no head", "class token, both heads"],
)
def test_same_outputs_of_other_heads(sizes):
    file = make_file(sizes)
    config = config_of(file)
    images, tokens = inputs(config)
    found = our_outputs(config, read(file, config), images, tokens)
    assert_close(found, Restated(file)(images, tokens))


def test_class_token_has_no_position():
    file = make_file(LIT)
    config = config_of(file)
    assert (config.vision.pool, config.vision.class_token) == ("class_token", True)
    assert config.logit_bias_init is None
    positions = read(file, config)["vision"]["positions"]
    np.testing.assert_array_equal(positions[0], np.zeros(48, np.float32))
    np.testing.assert_array_equal(positions[1:], file["img/pos_embedding"][0])
    larger = read(file, changed(config, image_size=48))["vision"]["positions"]
    assert larger.shape == (37, 48)
    np.testing.assert_array_equal(larger[0], positions[0])


def test_names_of_older_files():
    file = make_file(LIT)
    config = config_of(file)
    renamed = (
        ("MultiHeadDotProductAttention_0/", "MultiHeadDotProductAttention_1/"),
        ("LayerNorm_1/", "LayerNorm_2/"),
        ("MlpBlock_0/", "MlpBlock_3/"),
        ("img/pos_embedding", "img/Transformer/posembed_input/pos_embedding"),
    )
    older = {}
    for name, array in file.items():
        for new, old in renamed:
            name = name.replace(new, old)
        older[name] = array
    # A table with a row for the class token, and two tables for the text.
    row = np.full((1, 1, 48), 0.25, np.float32)
    table = "img/Transformer/posembed_input/pos_embedding"
    older[table] = np.concatenate([row, older[table]], axis=1)
    second = np.random.default_rng(2).standard_normal((1, 9, 32)).astype(np.float32)
    older["txt/Encoder_0/pos_embedding"] = second
    assert config_of(older) == config
    found, wanted = read(older, config), read(file, config)
    wanted["vision"]["positions"][0] = row[0, 0]
    wanted["text"]["positions"] += second[0]
    assert_same_params(found, wanted)


def test_naflex_is_a_square_table_and_a_matrix_over_patches():
    file = make_file(Sizes())
    naflex = dict(file)
    naflex["img/embedding/kernel"] = file["img/embedding/kernel"].reshape(8 * 8 * 3, 48)
    naflex["img/pos_embedding"] = file["img/pos_embedding"].reshape(4, 4, 48)
    config = config_of(naflex)
    assert (config.vision.naflex, config.image_size, config.vision.patch_size) == (True, 32, 8)
    assert_same_params(read(naflex, config), read(file, changed(config, vision__naflex=False)))


def shapes_of(row: ClipConfig):
    """The names and shapes of a looped file of that row."""
    ours, shapes = our_shapes(row), {}
    for rule in big_vision_rules(row, ()):
        part = np.broadcast_to(np.float32(0), ours[rule.ours])[rule.at]
        shapes[rule.theirs] = KINDS[rule.kind].write(part).shape
    return shapes


@pytest.mark.parametrize(
    "name",
    [
        "ViT-B-16-SigLIP",
        "ViT-SO400M-14-SigLIP",
        "ViT-SO400M-16-SigLIP-i18n-256",
        "ViT-L-16-SigLIP2-512",
        "ViT-gopt-16-SigLIP2-256",
    ],
)
def test_released_sizes_are_the_rows(name):
    row = get_architecture(name)
    shapes = shapes_of(row)
    assert changed(config_from_big_vision(shapes), name=name) == row
    assert config_from_big_vision(shapes, name) == row


def test_architecture_is_checked_but_for_sizes_of_tables():
    shapes = shapes_of(get_architecture("ViT-SO400M-14-SigLIP-378"))
    name = "ViT-SO400M-14-SigLIP-384"  # as many patches
    assert config_from_big_vision(shapes, name) == get_architecture(name)
    name = "ViT-SO400M-14-SigLIP"  # fewer of them, and a shorter context
    assert config_from_big_vision(shapes, name) == get_architecture(name)
    for name, words in {
        "ViT-B-16-SigLIP": r"embed_dim=768, but the file 1152",
        "ViT-SO400M-14-SigLIP2": r"vocab_size=256000, but the file 32000",
        "ViT-B-32": r"embed_dim=512, but the file 1152",
        "ViT-B-17": r"unknown model 'ViT-B-17'",
    }.items():
        with pytest.raises(UserError, match=words):
            config_from_big_vision(shapes, name)
    del shapes["b"]
    with pytest.raises(UserError, match=r"logit_bias=True, but the file False"):
        config_from_big_vision(shapes, "ViT-SO400M-14-SigLIP")


def test_a_file_of_something_else_is_refused():
    file = make_file(Sizes())
    shapes = {name: array.shape for name, array in file.items()}
    image_only = {name.removeprefix("img/"): s for name, s in shapes.items() if "img/" in name}
    with pytest.raises(UserError, match=r"no img/embedding/kernel; accepted are two-tower check"):
        config_from_big_vision(image_only)
    with pytest.raises(UserError, match=r"img/embedding/kernel of shape \(7, 48\); accepted are 4"):
        config_from_big_vision(shapes | {"img/embedding/kernel": (7, 48)})
    config = config_from_big_vision(shapes)
    extra = np.zeros((48, 48), np.float32)
    with pytest.raises(UserError, match=r"unknown: img/pre_logits/kernel"):
        read(file | {"img/pre_logits/kernel": extra}, config)
    gap = dict(file)
    del gap["img/Transformer/encoderblock_1/LayerNorm_0/bias"]
    with pytest.raises(UserError, match=r"missing: img/Transformer/encoderblock_1/LayerNorm_0/b"):
        read(gap, config)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_scale_of_any_shape(shape):
    file = make_file(Sizes())
    config = config_of(file)
    changed = {n: x.reshape(shape) if n in ("t", "b") else x for n, x in file.items()}
    assert_same_params(read(changed, config), read(file, config))


def test_an_npz_of_a_training_run(tmp_path):
    file = make_file(Sizes())
    run = {f"params/{name}": array for name, array in file.items()}
    np.savez(tmp_path / "run.npz", **run, **{"opt/0/count": np.zeros(1)})
    tensors = merge_position_tables(open_tensors(tmp_path / "run.npz"))
    config = config_from_big_vision(tensors.shapes)
    found = read_params(config, big_vision_rules(config, tensors.shapes), tensors, NOTHING)
    assert_same_params(found, read(file, config))
