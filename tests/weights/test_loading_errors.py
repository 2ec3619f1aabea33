"""What a user can get wrong in loading and saving: one line each, naming the file and what would be
right."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_clip import images, tiny, to_state_dict
from wrapped import error_of

import clip_jax
from clip_jax.errors import UserError
from clip_jax.text.huggingface_export import to_huggingface_files
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.load import open_model


def edit(path: Path, keys: tuple[str, ...], change: Callable[[Any], Any]) -> None:
    """Changes one value of a JSON file."""
    document = json.loads(path.read_text())
    target = document
    for key in keys[:-1]:
        target = target[key]
    target[keys[-1]] = change(target.get(keys[-1]))
    path.write_text(json.dumps(document))


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UserError, match="ViT-B-32"):
        clip_jax.create("ViT-B32")
    with pytest.raises(UserError, match=r"'vision\.width'"):
        clip_jax.create("ViT-B-32", vision_with=3)


def test_damaged_weights(tmp_path: Path) -> None:
    clip = tiny()
    clip.save(tmp_path / "m", "huggingface")
    weights = tmp_path / "m" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    assert "SOURCE/model.safetensors" in error_of(tmp_path / "m")
    weights.unlink()
    assert "no weights" in error_of(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("{")
    assert "cannot be read as JSON" in error_of(tmp_path / "m")


@pytest.mark.parametrize(
    ("kind", "factor", "part"),
    [
        (np.float32, np.nan, "values that are NaN or infinite"),
        (np.float16, np.inf, "values that are NaN or infinite"),
        (np.float64, 1e200, "values that are NaN or infinite"),
        (np.int32, 1, "dtype int32; weights are floating-point"),
    ],
)
def test_values_that_are_no_weights_are_refused_with_the_name(
    kind: type, factor: float, part: str, tmp_path: Path
) -> None:
    clip = tiny()
    clip.save(tmp_path / "m", "open_clip")
    state = to_state_dict(clip.config, clip.params)
    state["visual.proj"] = (state["visual.proj"] * np.float64(factor)).astype(kind)
    save_safetensors(tmp_path / "m" / "open_clip_model.safetensors", state)
    assert f"visual.proj has {part}" in error_of(tmp_path / "m")


OPEN_CLIP, VISION = "open_clip_config.json", ("model_cfg", "vision_cfg")


@pytest.mark.parametrize(
    ("name", "keys", "change", "part"),
    [
        (OPEN_CLIP, ("model_cfg", "text_cfg", "vocab_size"), lambda _: 9, "(60, 32) instead of"),
        (OPEN_CLIP, (*VISION, "layers"), lambda _: 3, "missing: visual.transformer"),
        (OPEN_CLIP, (*VISION, "layers"), lambda _: 1, "unknown: visual.transformer"),
        (OPEN_CLIP, (*VISION, "qk_norm"), lambda _: True, "qk_norm is not supported"),
        (OPEN_CLIP, (*VISION, "timm_model_name"), lambda _: "resnet18", "timm_model_name='resnet1"),
        # Tables are interpolated where the user asks for it, not where a source contradicts itself.
        (OPEN_CLIP, (*VISION, "image_size"), lambda size: 2 * size, "preprocess_cfg.size=32"),
        (OPEN_CLIP, ("model_cfg", "text_cfg", "context_length"), lambda n: 2 * n, "another shape"),
        ("huggingface", ("text_config", "max_position_embeddings"), lambda n: 2 * n, "other shape"),
        ("clip_jax", ("architecture", "image_size"), lambda size: 2 * size, "of another shape"),
    ],
)
def test_configuration_that_contradicts_the_tensors(
    name: str, keys: tuple[str, ...], change: Callable[[Any], Any], part: str, tmp_path: Path
) -> None:
    format, name = ("open_clip", name) if name == OPEN_CLIP else (name, "config.json")
    tiny().save(tmp_path / "m", format)
    edit(tmp_path / "m" / name, keys, change)
    assert part in error_of(tmp_path / "m")


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


WRONG = [None, "x", [1], {}, -1, 1.5, True, 10**12]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["clip_jax", "open_clip", "huggingface"])
def test_values_of_a_wrong_type_are_one_line(format: str, tmp_path: Path) -> None:
    """Every number of every configuration replaced by what it cannot be: refused or loaded, never a
    traceback."""
    tiny().save(tmp_path / "m", format)
    path = tmp_path / "m" / (OPEN_CLIP if format == "open_clip" else "config.json")
    text, refused = path.read_text(), 0
    for keys in paths_of(json.loads(text)):
        for wrong in WRONG:
            path.write_text(text)
            edit(path, keys, lambda _, wrong=wrong: wrong)
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


def test_a_given_tokenizer_must_belong(shared_data: Path, tmp_path: Path) -> None:
    clip = tiny()
    clip.save(tmp_path / "m")
    bpe = shared_data / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz"
    assert "49408 ids, but the model vocab_size=60" in error_of(tmp_path / "m", tokenizer=bpe)
    tiny(context_length=20).save(tmp_path / "h", "huggingface")
    for name, content in to_huggingface_files(clip_jax.get_tokenizer(bpe)).items():
        (tmp_path / "h" / name).write_bytes(content)
    with pytest.raises(UserError, match=r"49408 ids, but the model vocab_size=60"):
        _ = clip_jax.load(tmp_path / "h").tokenizer
    wide = tiny(vocab_size=49408, text__pool="eos", text__eos_id=7)
    wide.save(tmp_path / "w")
    assert "ends texts with id 49407" in error_of(tmp_path / "w", tokenizer=bpe)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for format in ("clip_jax", "open_clip"):
        with pytest.raises(UserError, match="cannot be written"):
            tiny().save(tmp_path / "file" / "m", format)
