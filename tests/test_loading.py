"""Loading, saving and converting: every layout that needs no other library, and what a user can
get wrong. Against the reference implementations: test_huggingface, test_parity_families."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import clip_jax
from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.models.architectures import ARCHITECTURES, get_architecture, same_function
from clip_jax.models.config import ClipConfig, override
from clip_jax.models.two_tower import init_params
from clip_jax.weights.open_clip import to_state_dict
from clip_jax.weights.open_clip_config import config_from_open_clip
from clip_jax.weights.open_clip_export import config_to_open_clip
from clip_jax.weights.positions import resize_grid, resize_line
from clip_jax.weights.tensors import save_safetensors

TINY: dict[str, Any] = {
    "embed_dim": 16,
    "image_size": 32,
    "patch_size": 8,
    "vision_width": 32,
    "vision_layers": 2,
    "vision_heads": 2,
    "vision_mlp_dim": 48,
    "context_length": 12,
    "vocab_size": 60,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 2,
    "text_mlp_dim": 64,
}
RESNET = TINY | {
    "vision_kind": "resnet",
    "vision_width": 4,
    "vision_layers": (1, 1, 1, 1),
    "vision_heads": 2,
}


def random_params(config: ClipConfig) -> Any:
    """A random value in every leaf, none of them 0 or 1."""
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    rng = np.random.default_rng(0)

    def values(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        one = path[-1].key in ("scale", "var")
        return (one + rng.uniform(-0.3, 0.3, leaf.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(values, shapes)


def tiny(**changes: Any) -> Clip:
    base = RESNET if changes.get("vision_kind") == "resnet" else TINY
    config = override(ClipConfig(), **(base | changes))
    return Clip(config, random_params(config))


def images(clip: Clip) -> np.ndarray:
    size = clip.config.image_size
    return np.random.default_rng(1).integers(0, 256, (3, size, size, 3), np.uint8)


def leaves(params: Any) -> dict[str, np.ndarray]:
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in flat}


def assert_same_params(a: Any, b: Any) -> None:
    ours, theirs = leaves(a), leaves(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype, name
        assert np.array_equal(value, theirs[name]), name


EXPORTS = [
    ("clip_jax", {}),
    ("clip_jax", {"vision_kind": "resnet"}),
    ("open_clip", {}),
    ("open_clip", {"vision_kind": "resnet", "text_activation": "quick_gelu"}),
    ("open_clip", {"vision_layer_scale": 0.1, "vision_pool": "average", "vision_pre_norm": False}),
    ("open_clip", {"text_pool": "eos", "eos_id": 7, "text_causal": False, "logit_bias_init": -3.0}),
    ("huggingface", {}),
    ("huggingface", {"vision_activation": "quick_gelu", "text_activation": "quick_gelu"}),
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
    plain = [dataclasses.replace(c, name="", vision_norm_eps=c.vision_eps) for c in (a, b)]
    checked = ("vision_activation", "text_activation", "text_pool", "logit_bias_init", "norm_eps")
    return same_images and all(getattr(plain[0], n) == getattr(plain[1], n) for n in checked)


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
    for name, config in ARCHITECTURES.items():
        try:
            document = config_to_open_clip(config)
        except UserError:
            continue
        back = config_from_open_clip(json.loads(json.dumps(document)))
        assert same_function(back) == same_function(config), name
        counted += 1
    assert counted > 80


def test_mixed_activations_are_not_written_as_one(tmp_path: Path) -> None:
    clip = tiny(vision_activation="quick_gelu", text_activation="gelu")
    with pytest.raises(UserError, match="vision_activation"):
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
    clip = tiny(vision_kind=kind)
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
    size = {k: v for k, v in TINY.items() if k != "name"}
    # A name and overrides together describe any model.
    back = clip_jax.load(path, architecture="ViT-B-32", **size)
    assert_same_params(clip.params, back.params)


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
    config = override(
        ClipConfig(),
        **(TINY | {"vision_width": 64, "vision_heads": 1, "text_width": 64, "text_heads": 1}),
        vision_activation="quick_gelu",
        text_activation="quick_gelu",
    )
    clip = Clip(config, random_params(config))
    state = to_state_dict(config, clip.params)

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
        half = value.ndim >= 2 and "embedding" not in name
        tensor = torch.tensor(value).half() if half else torch.tensor(value)
        node.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    for name, number in (("input_resolution", 32), ("context_length", 12), ("vocab_size", 60)):
        root.register_buffer(name, torch.tensor(number))
    torch.jit.save(torch.jit.trace(root, torch.zeros(1)), str(tmp_path / "tiny.pt"))
    back = clip_jax.load(tmp_path / "tiny.pt")
    assert back.config.vision_activation == back.config.text_activation == "quick_gelu"
    assert same_config(back.config, config)
    for name, value in leaves(clip.params).items():
        assert np.abs(value - leaves(back.params)[name]).max() < 2e-4, name


def test_places_parameters_on_a_mesh(tmp_path: Path) -> None:
    from clip_jax.sharding import make_mesh

    clip = tiny(vocab_size=30_000)
    clip.save(tmp_path / "m", "open_clip")
    mesh = make_mesh(data=2, fsdp=4)
    back = clip_jax.load(tmp_path / "m", mesh=mesh)
    table = back.params["text"]["token_embedding"]
    assert {shard.data.shape for shard in table.addressable_shards} == {(30_000 // 4, 32)}
    assert_same_params(clip.params, back.params)
    assert np.abs(back.encode_image(images(clip)) - clip.encode_image(images(clip))).max() < 1e-6


# What a user can get wrong: one line each, naming the file and what would be right.


def error_of(source: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        clip_jax.load(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    assert "no such file or folder" in error_of(tmp_path / "absent")
    (tmp_path / "photos").mkdir()
    assert "there is: nothing" in error_of(tmp_path / "photos")
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    message = error_of(tmp_path / "photos")
    assert "cat.jpg" in message
    assert "looked for" in message
    assert "open_clip_config.json" in message


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UserError, match="ViT-B-32"):
        clip_jax.create("ViT-B32")
    with pytest.raises(UserError, match="'vision_width'"):
        clip_jax.create("ViT-B-32", vision_with=3)


def test_damaged_weights(tmp_path: Path) -> None:
    clip = tiny()
    clip.save(tmp_path / "m", "huggingface")
    weights = tmp_path / "m" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert str(weights) in error_of(tmp_path / "m")
    weights.unlink()
    assert "no weights" in error_of(tmp_path / "m")


def test_nan_is_refused_with_the_name(tmp_path: Path) -> None:
    clip = tiny()
    state = to_state_dict(clip.config, clip.params)
    clip.save(tmp_path / "m", "open_clip")
    for value, kind in ((np.nan, np.float32), (np.inf, np.float16)):
        broken = {name: array.astype(kind) for name, array in state.items()}
        broken["visual.proj"].flat[5] = value
        save_safetensors(tmp_path / "m" / "open_clip_model.safetensors", broken)
        assert "visual.proj has values that are NaN or infinite" in error_of(tmp_path / "m")


def test_configuration_that_contradicts_the_tensors(tmp_path: Path) -> None:
    clip = tiny()
    clip.save(tmp_path / "m", "open_clip")
    path = tmp_path / "m" / "open_clip_config.json"
    document = json.loads(path.read_text())

    def with_change(part: str, key: str, value: Any) -> str:
        changed = json.loads(json.dumps(document))
        changed["model_cfg"][part][key] = value
        path.write_text(json.dumps(changed))
        return error_of(tmp_path / "m")

    assert "token_embedding.weight (60, 32) instead of" in with_change("text_cfg", "vocab_size", 9)
    assert "missing: visual.transformer" in with_change("vision_cfg", "layers", 3)
    assert "unknown: visual.transformer" in with_change("vision_cfg", "layers", 1)
    assert "qk_norm is not supported" in with_change("vision_cfg", "qk_norm", True)
    assert "timm_model_name='resnet18'" in with_change("vision_cfg", "timm_model_name", "resnet18")
    path.write_text("{")
    assert "cannot be read as JSON" in error_of(tmp_path / "m")


def test_a_missing_tokenizer_matters_when_it_is_used(tmp_path: Path) -> None:
    clip = tiny()
    clip.save(tmp_path / "m", "huggingface")
    back = clip_jax.load(tmp_path / "m")
    assert back.encode_image(images(clip)).shape == (3, 16)
    with pytest.raises(UserError, match="has no tokenizer"):
        back.encode_text(["a cat"])


def test_folders_that_hold_something_else_are_left_alone(tmp_path: Path) -> None:
    clip = tiny()
    for format in ("clip_jax", "open_clip", "huggingface"):
        folder = tmp_path / format
        folder.mkdir()
        (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(UserError, match="holds other files"):
            clip.save(folder, format)
        assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    clip.save(tmp_path / "m", "open_clip")
    clip.save(tmp_path / "m", "open_clip")  # its own kind is replaced
    assert not list(tmp_path.glob(".m-*"))


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
        ([f"--source={tmp_path / 'c'}", f"--output={tmp_path / 'd'}"], "no such file or folder"),
    ):
        failed = convert(*arguments)
        assert failed.returncode == 2
        assert part in failed.stderr
        assert failed.stderr.startswith("error:")
        assert len(failed.stderr.strip().splitlines()) == 1


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
    config = override(ClipConfig(), **(TINY | {"vocab_size": 49408, "context_length": 20}))
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


def test_a_tokenizer_of_another_vocabulary_is_refused(shared_data: Path, tmp_path: Path) -> None:
    clip = tiny(context_length=20)
    tokenizer = clip_jax.get_tokenizer(shared_data / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz")
    from clip_jax.data.huggingface_tokenizer import to_huggingface_files

    clip.save(tmp_path / "m", "huggingface")
    for name, content in to_huggingface_files(tokenizer).items():
        (tmp_path / "m" / name).write_bytes(content)
    with pytest.raises(UserError, match=r"49408 ids, but the model vocab_size=60"):
        _ = clip_jax.load(tmp_path / "m").tokenizer


WRONG = [None, "x", [1], {}, -1, 1.5, True, 10**12]


@pytest.mark.parametrize("format", ["clip_jax", "open_clip", "huggingface"])
def test_values_of_a_wrong_type_are_one_line(format: str, tmp_path: Path) -> None:
    """Every number of every configuration replaced by what it cannot be: refused or loaded, never a
    traceback."""
    from clip_jax.loading import open_model

    clip = tiny()
    clip.save(tmp_path / "m", format)
    name = "open_clip_config.json" if format == "open_clip" else "config.json"
    document = json.loads((tmp_path / "m" / name).read_text())
    refused = 0
    for path in list(paths_of(document)):
        for wrong in WRONG:
            changed = json.loads(json.dumps(document))
            target = changed
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = wrong
            (tmp_path / "m" / name).write_text(json.dumps(changed))
            try:
                found = open_model(tmp_path / "m")
                found.rules(found.config)
            except UserError:
                refused += 1
    assert refused > 50


def paths_of(document: Any, path: tuple[str, ...] = ()) -> Any:
    """Every key of nested objects, as a path."""
    for key, value in document.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from paths_of(value, (*path, key))


def test_a_configuration_that_says_another_size_is_refused(tmp_path: Path) -> None:
    """Tables are interpolated where the user asks for it, not where a source contradicts itself."""
    clip = tiny()
    for format, name, keys in (
        ("clip_jax", "config.json", ("architecture", "image_size")),
        ("open_clip", "open_clip_config.json", ("model_cfg", "vision_cfg", "image_size")),
        ("open_clip", "open_clip_config.json", ("model_cfg", "text_cfg", "context_length")),
        ("huggingface", "config.json", ("text_config", "max_position_embeddings")),
    ):
        clip.save(tmp_path / format, format)
        path = tmp_path / format / name
        document = json.loads(path.read_text())
        target = document
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] *= 2
        path.write_text(json.dumps(document))
        message = error_of(tmp_path / format)
        assert "of another shape" in message or "preprocess_cfg.size=32" in message


def test_exact_gelu_of_siglip_survives_open_clip(tmp_path: Path) -> None:
    from clip_jax.weights.open_clip_config import config_from_open_clip

    for activation in ("gelu", "gelu_tanh"):
        both = {"vision_activation": activation, "text_activation": activation}
        config = get_architecture("ViT-B-16-SigLIP", **both)
        back = config_from_open_clip(config_to_open_clip(config))
        assert (back.vision_activation, back.text_activation) == (activation, activation)


def test_weights_that_overflow_or_are_whole_numbers_are_refused(tmp_path: Path) -> None:
    clip = tiny()
    clip.save(tmp_path / "m", "open_clip")
    state = to_state_dict(clip.config, clip.params)
    for kind, factor, part in (
        (np.float64, 1e200, "NaN or infinite"),
        (np.int32, 1, "weights are floating-point"),
    ):
        changed = {
            k: v.astype(kind) * factor if k == "visual.proj" else v for k, v in state.items()
        }
        save_safetensors(tmp_path / "m" / "open_clip_model.safetensors", changed)
        message = error_of(tmp_path / "m")
        assert f"visual.proj has {'values that are ' if factor > 1 else 'dtype int32; '}{part}" in (
            message
        )


def test_a_given_tokenizer_must_belong(shared_data: Path, tmp_path: Path) -> None:
    clip = tiny()
    clip.save(tmp_path / "m")
    bpe = shared_data / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
    assert "do not belong together" in error_of(tmp_path / "m", tokenizer=bpe)
    wide = tiny(vocab_size=49408, text_pool="eos", eos_id=7)
    wide.save(tmp_path / "w")
    assert "ends texts with id 49407" in error_of(tmp_path / "w", tokenizer=bpe)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for format in ("clip_jax", "open_clip"):
        with pytest.raises(UserError, match="cannot be written"):
            tiny().save(tmp_path / "file" / "m", format)
