"""Loading, saving and converting: every layout that needs no other library, and what a user can
get wrong. Against the reference implementations: test_huggingface, test_parity_families."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_clip import (
    TINY,
    assert_same_params,
    changed,
    from_state_dict,
    images,
    nested,
    random_params,
    tiny,
    to_state_dict,
)

import clip_jax
from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES, get_architecture, same_function
from clip_jax.models.config import ClipConfig, differences
from clip_jax.models.fields import FUNCTION
from clip_jax.models.two_tower import init_params
from clip_jax.sharding import make_mesh
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.layouts.open_clip_config import config_from_open_clip
from clip_jax.weights.layouts.open_clip_export import config_to_open_clip
from clip_jax.weights.rules.positions import resize_grid, resize_line

EXPORTS = [
    ("clip_jax", {}),
    ("clip_jax", {"vision__kind": "resnet"}),
    ("open_clip", {}),
    ("open_clip", {"vision__kind": "resnet", "text__activation": "quick_gelu"}),
    (
        "open_clip",
        {"vision__layer_scale": 0.1, "vision__pool": "average", "vision__pre_norm": False},
    ),
    (
        "open_clip",
        {"text__pool": "eos", "text__eos_id": 7, "text__causal": False, "logit_bias_init": -3.0},
    ),
    ("huggingface", {}),
    ("huggingface", {"vision__activation": "quick_gelu", "text__activation": "quick_gelu"}),
]


@pytest.mark.parametrize(("format", "changes"), EXPORTS)
def test_export_and_import_are_bit_equal(
    format: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    clip = tiny(**changes)
    clip.save(tmp_path / "m", format=format)
    back = clip_jax.load(tmp_path / "m")
    assert_same_params(clip.params, back.params)
    assert same_config(clip.config, back.config)
    assert np.array_equal(clip.encode_image(images(clip)), back.encode_image(images(clip)))
    card = (tmp_path / "m" / "README.md").read_text()
    assert f"{clip.num_parameters:,} parameters" in card
    assert f"{clip.config.image_size} x {clip.config.image_size} pixels" in card


def same_config(a: ClipConfig, b: ClipConfig) -> bool:
    """Equal in what is computed and in how images are prepared."""
    image = ("image_mean", "image_std", "image_resize", "image_interpolation", "image_size")
    same_images = all(getattr(a, name) == getattr(b, name) for name in image)
    same_bias = a.logit_bias_init == b.logit_bias_init
    return same_images and same_bias and not differences(a, b, FUNCTION)


def test_bfloat16_keeps_the_scale_and_round_trips(tmp_path: Path) -> None:
    clip = tiny(logit_bias_init=-3.0)
    clip.save(tmp_path / "m", "open_clip")
    half = clip_jax.load(tmp_path / "m", dtype="bfloat16")
    assert half.params["logit_scale"].dtype == np.float32 == half.params["logit_bias"].dtype
    assert half.params["text"]["projection"].dtype.name == "bfloat16"
    half.save(tmp_path / "half", "open_clip")
    assert_same_params(half.params, clip_jax.load(tmp_path / "half", dtype="bfloat16").params)
    ours, theirs = (c.encode_image(images(clip)) for c in (clip, half))
    assert (ours * theirs).sum(axis=1).min() > 0.999


@pytest.mark.parametrize("stored", [False, True])
def test_stacked_and_separate_blocks_load_as_each_other(stored: bool, tmp_path: Path) -> None:
    clip = tiny(scan_layers=stored)
    clip.save(tmp_path / "m")
    clip.save(tmp_path / "o", "open_clip")
    pixels = images(clip)
    for folder in ("m", "o"):
        other = clip_jax.load(tmp_path / folder, scan_layers=not stored)
        assert ("blocks" in other.params["text"]["transformer"]) is not stored
        assert np.abs(clip.encode_image(pixels) - other.encode_image(pixels)).max() < 2e-6


def test_every_open_clip_row_survives_its_configuration() -> None:
    """Configuration out and in again names the same architecture."""
    counted = 0
    exact = {tower: {"activation": "gelu"} for tower in ("vision", "text")}
    rows = {**ARCHITECTURES, "exact": get_architecture("ViT-B-16-SigLIP", **exact)}
    for name, config in rows.items():
        try:
            document = config_to_open_clip(config)
        except UserError:
            continue
        back = config_from_open_clip(json.loads(json.dumps(document)))
        assert same_function(back) == same_function(config), name
        counted += 1
    assert counted > 80


def test_texts_of_siglip_have_the_activation_that_open_clip_does_not_say() -> None:
    document = config_to_open_clip(get_architecture("ViT-B-16-SigLIP"))
    document["model_cfg"]["text_cfg"].pop("act_kwargs", None)
    assert config_from_open_clip(document).text.activation == "gelu_tanh"


def test_mixed_activations_are_not_written_as_one(tmp_path: Path) -> None:
    clip = tiny(vision__activation="quick_gelu", text__activation="gelu")
    with pytest.raises(UserError, match=r"vision\.activation"):
        clip.save(tmp_path / "m", "open_clip")


def test_positions_are_interpolated_as_in_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    table = rng.standard_normal((1 + 49, 6)).astype(np.float32)
    for side in (4, 6, 7, 9, 14):
        grid = torch.tensor(table[1:]).reshape(1, 7, 7, 6).permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(
            grid, size=(side, side), mode="bicubic", antialias=True, align_corners=False
        )
        expected = resized.permute(0, 2, 3, 1).reshape(side * side, 6).numpy()
        ours = resize_grid(table, 1 + side * side, prefix=1)
        assert np.array_equal(ours[:1], table[:1])
        assert np.abs(ours[1:] - expected).max() < 2e-6, side
    for rows in (20, 49, 77):
        line = torch.tensor(table[1:]).T[None]
        expected = torch.nn.functional.interpolate(line, size=rows, mode="linear")[0].T.numpy()
        assert np.abs(resize_line(table[1:], rows) - expected).max() < 2e-6, rows


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_overrides_interpolate_and_say_so(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clip = tiny(vision__kind=kind)
    clip.save(tmp_path / "m")
    changed = clip_jax.load(tmp_path / "m", image_size=64, context_length=20)
    assert "interpolated" in caplog.text
    assert "text/positions" in caplog.text
    rows = 1 + (8 if kind == "vit" else 2) ** 2
    vision = changed.params["vision"]
    positions = vision["positions"] if kind == "vit" else vision["attention_pool"]["positions"]
    assert positions.shape[0] == rows
    assert changed.params["text"]["positions"].shape[0] == 20
    assert changed.encode_image(images(changed)).shape == (3, 16)


def test_bare_state_dictionaries(tmp_path: Path) -> None:
    clip = tiny()
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, to_state_dict(clip.config, clip.params))
    with pytest.raises(UserError, match="architecture="):
        clip_jax.load(path)
    with pytest.raises(UserError, match="does not fit the architecture"):
        clip_jax.load(path, architecture="ViT-B-32")
    # A name and overrides together describe any model.
    back = clip_jax.load(path, architecture="ViT-B-32", **nested(TINY))
    assert_same_params(clip.params, back.params)


@pytest.mark.slow
def test_a_bare_file_names_the_architectures_that_fit(tmp_path: Path) -> None:
    config = get_architecture("ViT-S-32-alt")
    params = jax.tree.map(
        lambda leaf: np.zeros(leaf.shape, np.float16),
        jax.eval_shape(lambda: init_params(config, jax.random.key(0))),
    )
    path = tmp_path / "weights.safetensors"
    save_safetensors(path, to_state_dict(config, params))
    with pytest.raises(UserError, match="a bare state dictionary"):
        clip_jax.load(path)


def test_openai_archive(tmp_path: Path) -> None:
    """A TorchScript archive as OpenAI's: half precision in part, extra entries."""
    torch = pytest.importorskip("torch")
    config = changed(
        ClipConfig(),
        **(TINY | {"vision__width": 64, "vision__heads": 1, "text__width": 64, "text__heads": 1}),
        vision__activation="quick_gelu",
        text__activation="quick_gelu",
    )
    state = to_state_dict(config, random_params(config))

    class Node(torch.nn.Module):
        def forward(self, x):  # type: ignore[no-untyped-def]
            return x

    root = Node()
    for name, value in state.items():
        *parents, last = name.split(".")
        node = root
        for parent in parents:
            if not hasattr(node, parent):
                node.add_module(parent, Node())
            node = getattr(node, parent)
        tensor = torch.tensor(value)
        if value.ndim >= 2 and "embedding" not in name:
            tensor = tensor.half()
        state[name] = tensor.float().numpy()
        node.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    for name, number in (("input_resolution", 32), ("context_length", 12), ("vocab_size", 60)):
        root.register_buffer(name, torch.tensor(number))
    torch.jit.save(torch.jit.trace(root, torch.zeros(1)), str(tmp_path / "tiny.pt"))
    back = clip_jax.load(tmp_path / "tiny.pt")
    assert back.config.vision.activation == back.config.text.activation == "quick_gelu"
    assert same_config(back.config, config)
    assert_same_params(back.params, from_state_dict(config, state))


def test_places_parameters_on_a_mesh(tmp_path: Path) -> None:
    clip = tiny(vocab_size=30_000)
    clip.save(tmp_path / "m", "open_clip")
    mesh = make_mesh(data=2, fsdp=4)
    back = clip_jax.load(tmp_path / "m", mesh=mesh)
    table = back.params["text"]["token_embedding"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(30_000 // 4, 32)}
    assert_same_params(clip.params, back.params)
    assert np.abs(back.encode_image(images(clip)) - clip.encode_image(images(clip))).max() < 1e-6


def convert(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clip_jax.convert", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )


@pytest.mark.slow
def test_convert_program(tmp_path: Path) -> None:
    clip = tiny()
    clip.save(tmp_path / "a", "huggingface")
    source = f"--source={tmp_path / 'a'}"
    done = convert(source, "--format=open_clip", f"--output={tmp_path / 'b'}", "--image_size=64")
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr
    assert str(tmp_path / "b") in done.stdout
    assert clip_jax.load(tmp_path / "b").config.image_size == 64
    assert f"from `{tmp_path / 'a'}`" in (tmp_path / "b" / "README.md").read_text()
    for arguments, part in (
        ([], "--source: is missing"),
        ([source], "--output: is missing"),
        ([source, f"--output={tmp_path / 'a'}"], "holds the source itself"),
    ):
        failed = convert(*arguments)
        assert failed.returncode == 2
        assert part in failed.stderr
        assert failed.stderr.startswith("error:")
        assert len(failed.stderr.strip().splitlines()) == 1


@pytest.mark.slow
def test_transformers_reads_our_export_and_prepares_alike(
    shared_data: Path, tmp_path: Path
) -> None:
    """`CLIPModel` and `CLIPProcessor` on our folder: the same logits of a picture and captions."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    from PIL import Image

    tokenizer = clip_jax.get_tokenizer(
        shared_data / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
    ).with_context_length(20)
    config = changed(ClipConfig(), **(TINY | {"vocab_size": 49408, "context_length": 20}))
    clip = Clip(config, random_params(config), tokenizer)
    clip.save(tmp_path / "m", "huggingface")

    model = transformers.CLIPModel.from_pretrained(tmp_path / "m").eval()
    processor = transformers.CLIPProcessor.from_pretrained(tmp_path / "m")
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    texts = ["a photo of a cat", "Hello   World!!  ", "it's 3.14 o'clock"]
    inputs = processor(
        text=texts,
        images=[Image.fromarray(pixels)],
        return_tensors="pt",
        padding="max_length",
        max_length=20,
    )
    with torch.no_grad():
        theirs = model(**inputs).logits_per_image.numpy()
    assert np.abs(clip.logits([pixels], texts) - theirs).max() < 1e-4
    back = clip_jax.load(tmp_path / "m")
    # transformers pads with the end of text, ours with 0; the tower reads the first end of text.
    assert np.abs(back.encode_text(texts) - clip.encode_text(texts)).max() < 1e-6
    assert np.array_equal(back.transform(pixels), clip.transform(pixels))


def test_what_cannot_be_given(tmp_path: Path) -> None:
    tiny().save(tmp_path / "m")
    load, create = functools.partial(clip_jax.load, tmp_path / "m"), clip_jax.create
    for call, message in (
        (lambda: load(tokenizer=5), "tokenizer=5: must be a name or path"),
        (lambda: load(architecture="nonsense"), "unknown model 'nonsense'"),
        (lambda: load(architecture=5), "model 5: must be a name"),
        (lambda: create("ViT-B-32", tokenizer=5), "tokenizer=5: must be a name or path"),
        (lambda: create(5), "model 5: must be a name"),
        (lambda: create("ViT-B-32", seed="a"), "seed='a': must be a whole number"),
        (lambda: create("ViT-B-32", seed=-1), "seed=-1"),
        (lambda: clip_jax.count_parameters(None), "model None: must be a name"),
    ):
        with pytest.raises(UserError, match=message):
            call()
