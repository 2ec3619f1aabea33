"""What a user can get wrong in loading and saving: one line each, naming the file and what would be
right."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_clip import images, tiny

import clip_jax
from clip_jax.errors import UserError
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.layouts.open_clip import to_state_dict


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
    with pytest.raises(UserError, match=r"'vision\.width'"):
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


def test_a_tokenizer_of_another_vocabulary_is_refused(shared_data: Path, tmp_path: Path) -> None:
    clip = tiny(context_length=20)
    tokenizer = clip_jax.get_tokenizer(shared_data / "clip_bpe" / "bpe_simple_vocab_16e6.txt.gz")
    from clip_jax.text.huggingface_export import to_huggingface_files

    clip.save(tmp_path / "m", "huggingface")
    for name, content in to_huggingface_files(tokenizer).items():
        (tmp_path / "m" / name).write_bytes(content)
    with pytest.raises(UserError, match=r"49408 ids, but the model vocab_size=60"):
        _ = clip_jax.load(tmp_path / "m").tokenizer


WRONG = [None, "x", [1], {}, -1, 1.5, True, 10**12]


@pytest.mark.slow
@pytest.mark.parametrize("format", ["clip_jax", "open_clip", "huggingface"])
def test_values_of_a_wrong_type_are_one_line(format: str, tmp_path: Path) -> None:
    """Every number of every configuration replaced by what it cannot be: refused or loaded, never a
    traceback."""
    from clip_jax.weights.open_model import open_model

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
    wide = tiny(vocab_size=49408, text__pool="eos", text__eos_id=7)
    wide.save(tmp_path / "w")
    assert "ends texts with id 49407" in error_of(tmp_path / "w", tokenizer=bpe)


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for format in ("clip_jax", "open_clip"):
        with pytest.raises(UserError, match="cannot be written"):
            tiny().save(tmp_path / "file" / "m", format)
