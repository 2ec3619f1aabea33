"""Hugging Face's layouts: equal outputs, bit-equal files, every row that they can hold."""

import json

import numpy as np
import pytest
from reference_models import assert_close, build, our_outputs, outputs, save
from tiny_clip import changed

from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES, get_architecture
from clip_jax.models.config import ClipConfig
from clip_jax.weights.layouts.huggingface import IGNORED, huggingface_rules
from clip_jax.weights.layouts.huggingface_config import (
    config_from_huggingface,
    config_to_huggingface,
)
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
        if not scanned:
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
    ("kind", "key", "value", "accepted"),
    [
        ("bert", "model_type", "bert", "clip, metaclip_2, siglip"),
        (None, "model_type", None, "clip"),
        ("clip", "text_config", [1], "is an object"),
        ("clip", "vision_config.hidden_act", "selu", "is quick_gelu or gelu or"),
        ("clip", "vision_config.num_channels", 4, "is 3"),
        ("clip", "vision_config.image_size", [224, 256], "is a square"),
        ("clip", "text_config.eos_token_id", [1, 2], "is a whole number from 0"),
        ("clip", "text_config.num_hidden_layers", 0, "is a whole number from 1"),
        ("clip", "text_config.layer_norm_eps", None, "is a number"),
        ("clip", "projection_dim", "512", ""),
        ("siglip", "vision_config.vision_use_head", False, "is true"),
        ("siglip", "text_config.projection_size", 512, "is vision_config.hidden_size=768"),
        ("siglip2", "vision_config.num_patches", 200, "is the square"),
    ],
)
def test_a_value_that_we_cannot_compute_is_named(kind, key, value, accepted):
    section, _, name = key.rpartition(".")
    document = {"model_type": kind} | ({section: {name: value}} if section else {name: value})
    with pytest.raises(UserError) as caught:
        config_from_huggingface(document)
    assert f"{key}={value!r}; accepted" in str(caught.value)
    assert accepted in str(caught.value).partition("; accepted ")[2]


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match=r"vision\.heads=7: must divide vision\.width=768"):
        config_from_huggingface({"model_type": "clip", "vision_config": {"num_attention_heads": 7}})


def test_buffers_are_let_through_and_nothing_else():
    model = build("CLIP", {}, {}, projection_dim=24)
    config = config_from_huggingface(model.config.to_dict())
    file = {name: array.numpy() for name, array in model.state_dict().items()}
    ids = {f"{t}_model.embeddings.position_ids": np.arange(9)[None] for t in ("text", "vision")}
    table = huggingface_rules(config)
    read_params(config, table, ArrayTensors({**file, **ids}), IGNORED)
    with pytest.raises(UserError, match=r"unknown: text_model\.extra"):
        read_params(config, table, ArrayTensors({**file, "text_model.extra": ids}), IGNORED)
    less = {name: array for name, array in file.items() if name != "visual_projection.weight"}
    with pytest.raises(UserError, match=r"missing: visual_projection\.weight"):
        read_params(config, table, ArrayTensors(less), IGNORED)


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
