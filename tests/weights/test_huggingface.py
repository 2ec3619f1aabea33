"""Hugging Face's layouts: equal outputs, bit-equal files, every row that they can hold."""

import json
import logging

import jax
import numpy as np
import pytest
from reference_models import build, outputs, save
from tiny_clip import changed

from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES, get_architecture
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import TwoTower
from clip_jax.weights.layouts.huggingface import IGNORED, huggingface_rules
from clip_jax.weights.layouts.huggingface_config import (
    config_from_huggingface,
    config_to_huggingface,
)
from clip_jax.weights.rules.positions import resize_grid, resize_line
from clip_jax.weights.rules.table import ArrayTensors, read_params, write_tensors

pytestmark = pytest.mark.slow

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# (class, changes of the text tower, of the image tower, of the whole)
CASES = {
    "clip, quick gelu, largest id": ("CLIP", {"eos_token_id": 2}, {}, {"projection_dim": 24}),
    "clip, gelu, first end of text": (
        "CLIP",
        {"eos_token_id": 50, "hidden_act": "gelu", "hidden_size": 64},
        {"hidden_act": "gelu", "num_attention_heads": 4, "layer_norm_eps": 1e-3},
        {"projection_dim": 40},
    ),
    "clip, tanh, 384/14": (
        "CLIP",
        {"eos_token_id": 96, "hidden_act": "gelu_pytorch_tanh"},
        {"hidden_act": "gelu_new", "image_size": 38, "patch_size": 7},
        {"projection_dim": 24},
    ),
    "metaclip 2, end of text is 2": ("MetaClip2", {"eos_token_id": 2}, {}, {"projection_dim": 24}),
    "siglip": ("Siglip", {"hidden_size": 48}, {}, {}),
    "siglip, projected to another width, 384/14": (
        "Siglip",
        {"projection_size": 48, "num_hidden_layers": 1},
        {"image_size": 38, "patch_size": 7},
        {},
    ),
    "siglip 2, any aspect": (
        "Siglip2",
        {"projection_size": 48},
        {"num_patches": 16, "layer_norm_eps": 1e-5},
        {},
    ),
}


def inputs(config: ClipConfig) -> tuple[np.ndarray, np.ndarray]:
    """Images, and captions whose end of text is neither last nor, but for "argmax", largest."""
    rng = np.random.default_rng(0)
    size, length = config.image_size, config.context_length
    pixels = rng.standard_normal((5, size, size, 3)).astype(np.float32)
    tokens = rng.integers(3, config.vocab_size - 1, (5, length))
    tokens[tokens == config.text.eos_id] = 3
    for row, at in enumerate((2, 4, length - 1, 5, 3)):
        tokens[row, at] = config.text.eos_id
    tokens[1, 6] = config.text.eos_id
    return pixels, tokens


def our_outputs(config: ClipConfig, params, pixels, tokens) -> dict[str, np.ndarray]:
    out = jax.jit(TwoTower(config).apply)({"params": params}, pixels, tokens)
    logits = out.logit_scale * out.image_embeds @ out.text_embeds.T + out.logit_bias
    found = {"image": out.image_embeds, "text": out.text_embeds, "logits": logits}
    return {name: np.asarray(array) for name, array in found.items()}


def assert_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    for name in ("image", "text"):
        cosine = np.sum(found[name] * wanted[name], axis=-1)
        assert cosine.min() >= 0.999999, (name, cosine.min())
        np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=2e-5, err_msg=name)
        rows = wanted[name]
        assert np.abs(rows - rows[:1])[1:].max() > 0.05, f"{name}: all rows alike, nothing is shown"
    np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_same_outputs_and_back_bit_for_bit(case, tmp_path):
    from safetensors.numpy import save_file

    kind, text, vision, top = CASES[case]
    model = build(kind, text, vision, **top)
    file = save(model, tmp_path / "theirs")
    document = json.loads((tmp_path / "theirs" / "config.json").read_text())
    config = config_from_huggingface(document)
    pixels, tokens = inputs(config)
    wanted = outputs(model, pixels, tokens)
    for scanned in (False, True):
        layout = changed(config, scan_layers=scanned)
        table = huggingface_rules(layout)
        params = read_params(layout, table, ArrayTensors(file), IGNORED)
        assert_close(our_outputs(layout, params, pixels, tokens), wanted)
        back = dict(write_tensors(layout, table, params))
        assert back.keys() == file.keys()
        for name, array in file.items():
            assert back[name].dtype == array.dtype, name
            np.testing.assert_array_equal(back[name], array, err_msg=name)

    folder = tmp_path / "ours"
    folder.mkdir()
    save_file(back, folder / "model.safetensors", metadata={"format": "pt"})
    ours = config_to_huggingface(config)
    (folder / "config.json").write_text(json.dumps(ours))
    assert config_from_huggingface(ours) == config
    loaded, report = type(model).from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.config.architectures == [type(model).__name__]
    again = outputs(loaded.eval(), pixels, tokens)
    for name, array in wanted.items():  # equal weights; products are summed as memory lies
        atol = 1e-4 if name == "logits" else 1e-6
        np.testing.assert_allclose(again[name], array, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("kind", ["CLIP", "MetaClip2", "Siglip", "Siglip2"])
def test_defaults_are_those_of_transformers(kind):
    theirs = getattr(transformers, f"{kind}Config")().to_dict()
    empty = {"model_type": theirs["model_type"]}
    assert config_from_huggingface(empty) == config_from_huggingface(theirs)
    nothing = {**empty, "text_config": None, "vision_config": {}}
    assert config_from_huggingface(nothing) == config_from_huggingface(theirs)


def test_released_configurations_are_the_rows():
    """As the hub has them: with most defaults left out."""
    openai = {
        "model_type": "clip",
        "text_config": {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1},
        "vision_config": {},
    }
    found = config_from_huggingface(openai)
    assert changed(found, name="ViT-B-32-quickgelu") == get_architecture("ViT-B-32-quickgelu")
    siglip = {"model_type": "siglip", "text_config": {}, "vision_config": {}}
    found = config_from_huggingface(siglip)
    assert changed(found, name="ViT-B-16-SigLIP") == get_architecture("ViT-B-16-SigLIP")
    tower = {
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
    }
    gopt = {
        "model_type": "siglip",
        "text_config": {**tower, "projection_size": 1536, "vocab_size": 256000},
        "vision_config": {
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "num_attention_heads": 16,
            "num_hidden_layers": 40,
            "image_size": 384,
        },
    }
    name = "ViT-gopt-16-SigLIP2-384"
    assert changed(config_from_huggingface(gopt), name=name) == get_architecture(name)


def test_older_sections_come_first():
    sections = {
        "model_type": "clip",
        "text_config": {"eos_token_id": 2, "hidden_size": 768, "num_attention_heads": 12},
        "text_config_dict": {"hidden_size": 512},
        "vision_config": {"patch_size": 14},
        "vision_config_dict": None,
    }
    found = config_from_huggingface(sections)
    theirs = transformers.CLIPConfig(**json.loads(json.dumps(sections)))
    assert found == config_from_huggingface(theirs.to_dict())
    assert (found.text.width, found.text.heads, found.vision.patch_size) == (512, 8, 14)


def test_every_row_is_saved_and_found_again_or_refused():
    saved = set()
    for name, row in ARCHITECTURES.items():
        try:
            document = config_to_huggingface(row)
        except UserError:
            continue
        found = config_from_huggingface(json.loads(json.dumps(document)))
        image = {f: getattr(row, f) for f in ("image_resize", "image_interpolation")}
        assert changed(found, name=name, **image) == row
        saved.add(name)
    assert {"ViT-B-32", "ViT-B-32-quickgelu", "ViT-bigG-14", "ViT-H-14-378"} <= saved
    assert {"ViT-B-16-SigLIP", "ViT-SO400M-14-SigLIP-384", "ViT-gopt-16-SigLIP2-384"} <= saved
    assert config_to_huggingface(ARCHITECTURES["ViT-H-14-worldwide"])["model_type"] == "metaclip_2"
    refused = {"RN50", "ViT-L-14-CLIPA", "EVA02-B-16", "PE-Core-B-16", "ViT-M-16-alt"}
    assert not saved & refused


def test_refusal_names_what_is_in_the_way():
    with pytest.raises(UserError, match=r"RN50: .* CLIPModel has no vision.kind='resnet'.*open_c"):
        config_to_huggingface(get_architecture("RN50"))
    row = get_architecture("ViT-SO400M-16-SigLIP-i18n-256")
    with pytest.raises(UserError, match=r"SiglipModel has no text.projection='none'"):
        config_to_huggingface(row)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"model_type": "bert"}, "model_type='bert'; accepted are clip, metaclip_2, siglip"),
        ({}, "model_type=None; accepted are clip"),
        ({"model_type": "clip", "text_config": [1]}, r"text_config=\[1\]; accepted is an object"),
        (
            {"model_type": "clip", "vision_config": {"hidden_act": "selu"}},
            "vision_config.hidden_act='selu'; accepted is quick_gelu or gelu or",
        ),
        (
            {"model_type": "clip", "vision_config": {"num_channels": 4}},
            "vision_config.num_channels=4; accepted is 3",
        ),
        (
            {"model_type": "clip", "vision_config": {"image_size": [224, 256]}},
            r"vision_config.image_size=\[224, 256\]; accepted is a square",
        ),
        (
            {"model_type": "clip", "text_config": {"eos_token_id": [1, 2]}},
            r"text_config.eos_token_id=\[1, 2\]; accepted is a whole number from 0",
        ),
        (
            {"model_type": "clip", "text_config": {"num_hidden_layers": 0}},
            "text_config.num_hidden_layers=0; accepted is a whole number from 1",
        ),
        (
            {"model_type": "clip", "text_config": {"layer_norm_eps": None}},
            "text_config.layer_norm_eps=None; accepted is a number",
        ),
        ({"model_type": "clip", "projection_dim": "512"}, "clip.projection_dim='512'; accepted"),
        (
            {"model_type": "clip", "vision_config": {"num_attention_heads": 7}},
            "vision.heads=7: must divide vision.width=768",
        ),
        (
            {"model_type": "siglip", "vision_config": {"vision_use_head": False}},
            "vision_config.vision_use_head=False; accepted is true",
        ),
        (
            {"model_type": "siglip", "text_config": {"projection_size": 512}},
            "text_config.projection_size=512; accepted is vision_config.hidden_size=768",
        ),
        (
            {"model_type": "siglip2", "vision_config": {"num_patches": 200}},
            "vision_config.num_patches=200; accepted is the square",
        ),
    ],
)
def test_a_value_that_we_cannot_compute_is_named(document, words):
    with pytest.raises(UserError, match=words):
        config_from_huggingface(document)


@pytest.fixture(scope="module")
def clip_file():
    model = build("CLIP", {}, {}, projection_dim=24)
    config = config_from_huggingface(model.config.to_dict())
    return config, {name: array.numpy() for name, array in model.state_dict().items()}


def test_buffers_are_let_through_and_nothing_else(clip_file):
    config, file = clip_file
    ids = {f"{t}_model.embeddings.position_ids": np.arange(9)[None] for t in ("text", "vision")}
    table = huggingface_rules(config)
    read_params(config, table, ArrayTensors({**file, **ids}), IGNORED)
    with pytest.raises(UserError, match=r"unknown: text_model\.extra"):
        read_params(config, table, ArrayTensors({**file, "text_model.extra": ids}), IGNORED)
    less = {name: array for name, array in file.items() if name != "visual_projection.weight"}
    with pytest.raises(UserError, match=r"missing: visual_projection\.weight"):
        read_params(config, table, ArrayTensors(less), IGNORED)


def test_tables_of_positions_are_resized_and_said_so(clip_file, caplog):
    config, file = clip_file
    other = changed(config, image_size=48, context_length=16)
    with caplog.at_level(logging.WARNING):
        params = read_params(other, huggingface_rules(other), ArrayTensors(file), IGNORED)
    assert "position table of 17 rows interpolated to 37" in caplog.text
    assert "position table of 11 rows interpolated to 16" in caplog.text
    images = file["vision_model.embeddings.position_embedding.weight"]
    texts = file["text_model.embeddings.position_embedding.weight"]
    np.testing.assert_array_equal(params["vision"]["positions"], resize_grid(images, 37, 1))
    np.testing.assert_array_equal(params["text"]["positions"], resize_line(texts, 16))
    np.testing.assert_array_equal(params["vision"]["positions"][0], images[0])


def test_every_field_of_a_naflex_comes_back():
    config = get_architecture("ViT-B-16-SigLIP2-256", vision={"naflex": True})
    document = config_to_huggingface(config)
    assert document["model_type"] == "siglip2"
    assert document["vision_config"]["num_patches"] == 256
    found = config_from_huggingface(document)
    assert (found.vision.naflex, found.image_interpolation) == (True, "bilinear")
    assert changed(found, name=config.name, image_interpolation="bicubic") == config
    with pytest.raises(UserError, match="image_size=260"):
        config_to_huggingface(changed(config, image_size=260))


def test_the_reference_fills_every_parameter():
    model = build("Siglip", *CASES["siglip"][1:3])
    for name, parameter in model.named_parameters():
        assert parameter.detach().numpy().std() > 0.01 or name.startswith("logit_"), name
