"""Weights in files of other names: variants, shards, and the output of Hugging Face's Trainer."""

import json

import pytest
from tiny_clip import assert_same_params, tiny
from wrapped import error_of, prefixed, written

import clip_jax
from clip_jax.clip import Clip
from clip_jax.weights.files.safetensors_writer import save_safetensors

torch = pytest.importorskip("torch")
from safetensors.torch import load_file  # noqa: E402


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny()


@pytest.mark.parametrize("layout", ["huggingface", "open_clip"])
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace(".safetensors", ".fp16.safetensors", 1),
        lambda name: name.replace(".safetensors", ".bf16.safetensors", 1),
    ],
)
def test_one_variant(clip, layout, rename, tmp_path, caplog):
    folder = tmp_path / "m"
    clip.save(folder, layout)
    (plain,) = folder.glob("*.safetensors")
    plain.rename(folder / rename(plain.name))
    assert_same_params(clip.params, clip_jax.load(folder).params)
    assert caplog.text.count("; took ") == 1
    clip.save(tmp_path / "other", layout)
    (tmp_path / "other" / plain.name).rename(folder / plain.name)  # the plain one comes first
    (folder / rename(plain.name)).write_bytes(b"")
    assert_same_params(clip.params, clip_jax.load(folder).params)


@pytest.mark.parametrize(
    "index",
    ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"],
)
def test_variant_in_shards(clip, index, tmp_path):
    folder = tmp_path / "m"
    clip.save(folder, "huggingface")
    tensors = {k: v.numpy() for k, v in load_file(folder / "model.safetensors").items()}
    save_safetensors(folder / "model.safetensors", tensors, max_shard_bytes=20_000)
    path = folder / "model.safetensors.index.json"
    about = json.loads(path.read_text())
    path.unlink()
    for shard in folder.glob("model-*.safetensors"):
        shard.rename(folder / shard.name.replace("model-", "model.fp16-"))
    names = {
        key: file.replace("model-", "model.fp16-") for key, file in about["weight_map"].items()
    }
    (folder / index).write_text(json.dumps({"weight_map": names}))
    assert_same_params(clip.params, clip_jax.load(folder).params)
    assert_same_params(clip.params, clip_jax.load(folder / index).params)


def test_transformers_writes_the_variant(clip, tmp_path):
    transformers = pytest.importorskip("transformers")
    clip.save(tmp_path / "m", "huggingface")
    model = transformers.CLIPModel.from_pretrained(tmp_path / "m")
    for options in ({}, {"max_shard_size": "20KB"}):
        folder = tmp_path / f"v{len(options)}"
        model.save_pretrained(folder, variant="fp16", **options)
        assert not (folder / "model.safetensors").exists()
        assert_same_params(clip.params, clip_jax.load(folder).params)


def test_several_variants_are_a_question(clip, tmp_path):
    folder = tmp_path / "m"
    clip.save(folder, "huggingface")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    (folder / "model.bf16.safetensors").write_bytes(b"")
    message = error_of(folder)
    assert "several variants" in message
    assert "model.bf16.safetensors, model.fp16.safetensors" in message
    assert_same_params(clip.params, clip_jax.load(folder / "model.fp16.safetensors").params)


def test_torch_shards(clip, tmp_path):
    folder = tmp_path / "m"
    state = prefixed("model.")(written(clip, folder, "huggingface"))
    names = list(state)
    weight_map = {}
    for n in range(3):
        file = f"pytorch_model-0000{n + 1}-of-00003.bin"
        part = {name: state[name] for name in names[n::3]}
        torch.save(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert_same_params(clip.params, clip_jax.load(folder).params)


def test_trainers_output_root(clip, tmp_path, caplog):
    root, other = tmp_path / "out", tiny(embed_dim=8)
    for step, model in ((500, other), (1000, clip), (90, other)):
        model.save(root / f"checkpoint-{step}", "huggingface")
    (root / "checkpoint-2000").mkdir()  # being written, or broken off
    (root / "runs").mkdir()
    assert_same_params(clip.params, clip_jax.load(root).params)
    assert "checkpoint-1000; also there: checkpoint-500, checkpoint-90" in caplog.text
    (root / "config.json").write_bytes((root / "checkpoint-500" / "config.json").read_bytes())
    assert_same_params(clip.params, clip_jax.load(root).params)
    weights = root / "checkpoint-500" / "model.safetensors"
    (root / "model.safetensors").write_bytes(weights.read_bytes())  # its own comes first
    assert_same_params(other.params, clip_jax.load(root).params)


def test_trainers_root_has_what_its_checkpoints_lack(clip, tmp_path):
    """Trainer keeps no processor beside the weights unless it is given one."""
    root = tmp_path / "out"
    clip.save(root / "checkpoint-5", "huggingface")
    preprocessor = root / "checkpoint-5" / "preprocessor_config.json"
    about = json.loads(preprocessor.read_text()) | {"image_mean": [0.1, 0.2, 0.3]}
    preprocessor.unlink()
    (root / "preprocessor_config.json").write_text(json.dumps(about))
    symbols = ["a</w>", *(f"x{n}" for n in range(57)), "<|startoftext|>", "<|endoftext|>"]
    (root / "vocab.json").write_text(json.dumps({s: n for n, s in enumerate(symbols)}))
    (root / "merges.txt").write_text("#version: 0.2\n")
    loaded = clip_jax.load(root)
    assert loaded.config.image_mean == (0.1, 0.2, 0.3)
    assert loaded.tokenizer("a")[0, :3].tolist() == [58, 0, 59]
