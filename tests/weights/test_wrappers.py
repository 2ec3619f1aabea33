"""Weights inside what training programs wrap around them: read in every layout, or refused."""

import argparse
import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tiny_clip import TINY, assert_same_params, nested, random_params, tiny
from wrapped import FILES, State, error_of, prefixed, written

import clip_jax
from clip_jax.clip import Clip
from clip_jax.weights.files.safetensors_writer import save_safetensors
from clip_jax.weights.layouts.huggingface_config import siglip_config

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402


def compiled_tower(state: State) -> State:
    """One tower alone was compiled."""
    towers = ("text_model.", "visual.", "transformer.")
    start = next(t for t in towers if any(name.startswith(t) for name in state))
    return {
        name.replace(start, f"{start}_orig_mod.", 1) if name.startswith(start) else name: value
        for name, value in state.items()
    }


def training(state: State) -> State:
    """Entries that checkpoints have beside the weights."""
    moments = {n: {"step": torch.tensor(3.0), "exp_avg": x} for n, x in enumerate(state.values())}
    return {
        "epoch": 3,
        "optimizer": {"state": moments, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
        "scheduler": {"last_epoch": 3},
        "rng": torch.arange(8, dtype=torch.uint8),
    }


WRAPPERS: dict[str, Callable[[State], State]] = {
    "module.": prefixed("module."),
    "_orig_mod.": prefixed("_orig_mod."),
    "model.": prefixed("model."),
    "clip.": prefixed("clip."),
    "base_model.model.": prefixed("base_model.model."),
    "net.clip_model.": prefixed("net.clip_model."),
    "a compiled tower": compiled_tower,
    "a compiled tower in a model": lambda s: prefixed("model.module.")(compiled_tower(s)),
    "fsdp": prefixed("_fsdp_wrapped_module._checkpoint_wrapped_module."),
    "averaged": lambda s: {"n_averaged": torch.tensor(3), **prefixed("module.")(s)},
    "averaged, in a model": lambda s: prefixed("model.")(WRAPPERS["averaged"](s)),
}
DICTIONARIES: dict[str, Callable[[State], State]] = {
    "Lightning": lambda s: {
        **training(s),
        "state_dict": {**prefixed("model.")(s), "loss.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.0",
    },
    "state_dict": lambda s: {"state_dict": s, **training(s)},
    "model": lambda s: {"model": s, **training(s)},
    "model_state_dict": lambda s: {"model_state_dict": s, **training(s)},
    "net": lambda s: {"net": s, **training(s)},
    "DeepSpeed": lambda s: {"module": s, "dp_world_size": 8, **training(s)},
    "nested": lambda s: {"state_dict": prefixed("model.module._orig_mod.")(s)},
    "deeper": lambda s: {"checkpoint": {"model": prefixed("module.")(s)}},
    "beside": lambda s: {**s, **training(s) | {"rng": None}},
    "with a moving average": lambda s: {
        "state_dict_ema": {name: x + 1 for name, x in s.items()},
        "state_dict": s,
    },
    "with a moving average inside": lambda s: {
        **prefixed("model.")(s),
        **prefixed("model_ema.module.")({name: x + 1 for name, x in s.items()}),
    },
}


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny()


@pytest.mark.parametrize("layout", list(FILES))
@pytest.mark.parametrize("name", list(WRAPPERS))
def test_prefixes_are_taken_off(clip, name, layout, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "m"
    state = WRAPPERS[name](written(clip, folder, layout))
    torch.save(state, folder / FILES[layout][1])
    assert_same_params(clip.params, clip_jax.load(folder).params)
    lines = [r.getMessage() for r in caplog.records if "names" in r.getMessage()]
    assert len(lines) == 1, lines
    (folder / FILES[layout][1]).unlink()
    tensors = {key: value.numpy() for key, value in state.items()}
    save_safetensors(folder / FILES[layout][0], tensors)
    assert_same_params(clip.params, clip_jax.load(folder).params)


@pytest.mark.parametrize("layout", list(FILES))
@pytest.mark.parametrize("name", list(DICTIONARIES))
def test_dictionaries_are_opened(clip, name, layout, tmp_path, caplog):
    folder = tmp_path / "m"
    torch.save(DICTIONARIES[name](written(clip, folder, layout)), folder / FILES[layout][1])
    assert_same_params(clip.params, clip_jax.load(folder).params)
    if "average" in name:
        assert "ema" in caplog.text.split(", not ")[1]
    if name == "Lightning":
        assert "left out 1 tensors beside the model (loss.weight)" in caplog.text


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_openai_state_dictionary_by_architecture(shape, tmp_path):
    """A bare file, as of a trainer of OpenAI's own class; heads are 64 wide there."""
    sizes = {"vision__width": 64, "vision__heads": 1, "text__width": 64, "text__heads": 1}
    clip = tiny(**sizes)
    state = written(clip, tmp_path / "m", "open_clip")
    state["logit_scale"] = state["logit_scale"].reshape(shape)
    about = {"input_resolution": torch.tensor(32), "context_length": torch.tensor(12)}
    about["vocab_size"] = torch.tensor(60)
    torch.save({"model": prefixed("module.")({**state, **about})}, tmp_path / "clip.pt")
    found = clip_jax.load(tmp_path / "clip.pt")
    assert_same_params(clip.params, found.params)
    assert found.config.text.activation == "quick_gelu"


NUMBERS = {
    "float64": np.float64(0.5),
    "float32": np.float32(0.5),
    "int64": np.int64(3),
    "bool": np.bool_(True),
    "half": np.float16(0.5),
    "string": np.str_("best"),
    "dtype": np.dtype("float32"),
    "array": np.arange(3.0),
    "array of objects": np.array([{"a": 1}, None], dtype=object),
    "random state": np.random.RandomState(0).get_state(),
    "path": Path("runs/7"),
    "arguments": argparse.Namespace(lr=np.float64(0.1), out=Path("x"), nested={"a": [1]}),
}


@pytest.mark.parametrize("zipped", [True, False])
def test_numbers_of_numpy_beside_the_weights(clip, zipped, tmp_path):
    state = written(clip, tmp_path / "m", "huggingface")
    checkpoint = {"model": state, "best": NUMBERS, "history": [*NUMBERS.values()] * 2}
    path = tmp_path / "m" / "pytorch_model.bin"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    assert_same_params(clip.params, clip_jax.load(tmp_path / "m").params)
    assert "numpy" not in str(torch.serialization.get_safe_globals())  # nothing stays allowed


# --- Refusals -----------------------------------------------------------------------------------


def adapter(state: State) -> State:
    name = next(name for name in state if name.endswith("q_proj.weight") or "in_proj" in name)
    stem = f"base_model.model.{name.removesuffix('.weight')}"
    return {f"{stem}.lora_A.weight": torch.ones(2, 32), f"{stem}.lora_B.weight": torch.ones(32, 2)}


REFUSED: dict[str, tuple[Callable[[State], State], str]] = {
    "adapter": (adapter, "adapter"),
    "adapter in its model": (
        lambda s: prefixed("base_model.model.")(
            {n.replace("q_proj.", "q_proj.base_layer.").replace("attn.", "attn.base_layer."): x
             for n, x in s.items()} | {"x.lora_A.default.weight": torch.ones(2)}
        ),
        "adapter",
    ),
    "two models": (
        lambda s: {**prefixed("student.")(s), **prefixed("guide.")(s)},
        "holds 2 models (student.*, guide.*)",
    ),
    "another model": (
        lambda s: {f"encoder.{n}.weight": torch.ones(2) for n in range(40)},
        "encoder.0.weight",
    ),
    "one tower": (
        lambda s: {n: x for n, x in s.items() if n.startswith(("vision_model.", "visual."))},
        "missing: ",
    ),
    "long names": (
        lambda s: {("a_very_long_name." * 9 + n): x for n, x in s.items() if "scale" not in n},
        "layout",
    ),
    "no tensors": (lambda s: {"epoch": 3, "model": {"a": 1}}, "no state dictionary"),
}  # fmt: skip


@pytest.mark.parametrize("layout", list(FILES))
@pytest.mark.parametrize("name", list(REFUSED))
def test_what_is_no_model_is_refused_in_a_short_line(clip, name, layout, tmp_path):
    change, said = REFUSED[name]
    folder = tmp_path / "m"
    state = change(written(clip, folder, layout))
    torch.save(state, folder / FILES[layout][1])
    message = error_of(folder)
    assert said in message
    assert len(message) < 400


def test_folders_say_what_they_hold(clip, tmp_path):
    clip.save(tmp_path / "m", "huggingface")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "weights.st")
    message = error_of(tmp_path / "m")
    assert "looked for model.safetensors" in message
    assert "README.md, config.json, preprocessor_config.json, weights.st" in message

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text("{}")
    (tmp_path / "a" / "adapter_model.safetensors").write_bytes(b"")
    assert "adapter" in error_of(tmp_path / "a")

    for n in range(60):
        (tmp_path / "a" / f"{'long' * 20}{n}.txt").write_text("")
    (tmp_path / "a" / "adapter_config.json").unlink()
    message = error_of(tmp_path / "a")
    assert "adapter_model.safetensors" in message
    assert "more" in message
    assert len(message) < 400

    (tmp_path / "empty").mkdir()
    assert "there is: nothing" in error_of(tmp_path / "empty")
    assert "no such file or folder" in error_of(tmp_path / "absent")
    (tmp_path / "t" / "checkpoint-5").mkdir(parents=True)
    assert "checkpoint-5/" in error_of(tmp_path / "t")


# --- The scale ----------------------------------------------------------------------------------


def siglip() -> Clip:
    fields = TINY | {"embed_dim": 32, "vision__width": 32, "text__width": 32}
    config = siglip_config(**nested(fields))
    return Clip(config, random_params(config))


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
@pytest.mark.parametrize(
    ("format", "make"),
    [
        ("clip_jax", tiny),
        ("huggingface", tiny),
        ("huggingface", siglip),
        ("open_clip", lambda: tiny(logit_bias_init=-3.0)),
    ],
)
def test_scale_of_any_shape(shape, format, make, tmp_path):
    clip, folder = make(), tmp_path / "m"
    clip.save(folder, format)
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    state = {n: x.reshape(shape) if n.startswith("logit_") else x for n, x in state.items()}
    save_safetensors(path, {n: x.numpy() for n, x in state.items()})
    assert_same_params(clip.params, clip_jax.load(folder).params)
    if format == "open_clip":  # and where it says so
        config = folder / "open_clip_config.json"
        document = json.loads(config.read_text())
        document["model_cfg"] |= {"nonscalar_logit_scale": True, "nonscalar_logit_bias": True}
        config.write_text(json.dumps(document))
        path.unlink()
        torch.save(state, folder / "open_clip_pytorch_model.bin")
        assert_same_params(clip.params, clip_jax.load(folder).params)


def test_two_numbers_are_no_scale(clip, tmp_path):
    state = written(clip, tmp_path / "m", "open_clip")
    state["logit_scale"] = torch.ones(2)
    torch.save(state, tmp_path / "m" / "open_clip_pytorch_model.bin")
    assert "logit_scale (2,) instead of ()" in error_of(tmp_path / "m")
