"""LoRA and DoRA against PEFT on random CLIPModel and SiglipModel: outputs, gradients, both ways."""

import os
import subprocess
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from places import TESTS

import clip_jax
from clip_jax.adaptation.low_rank import merged
from clip_jax.adaptation.peft import read_peft, sites_by_module, to_peft, write_peft
from clip_jax.adaptation.towers import encode
from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.models.two_tower import l2_normalize

pytestmark = pytest.mark.parity
TOWERS = ("image", "text")
ENDS = {"a": "lora_A", "b": "lora_B", "magnitude": "lora_magnitude_vector"}
Arrays = Any


def program(*arguments: Any) -> None:
    script = TESTS / "oracle" / "peft_adapters.py"
    command = [os.environ["ORACLE"], script, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    program("make", folder)
    return folder


def embeds(clip: Clip, given: Arrays, adapter: Any, scale: float) -> dict[str, jax.Array]:
    images = jnp.asarray(given["pixel_values"].transpose(0, 2, 3, 1))
    inputs = {"image": ("vision", images), "text": ("text", jnp.asarray(given["input_ids"]))}
    return {
        name: l2_normalize(encode(clip.config, clip.params, adapter, values, tower, scale))
        for name, (tower, values) in inputs.items()
    }


def plain(clip: Clip, given: Arrays) -> dict[str, jax.Array]:
    return jax.jit(lambda: embeds(clip, given, {}, 1.0))()


def difference(found: Arrays, expected: Arrays) -> float:
    return max(float(np.abs(found[tower] - expected[tower]).max()) for tower in TOWERS)


@pytest.mark.parametrize(
    "name", ["clip_lora", "clip_stabilised", "clip_ranks", "clip_dora", "siglip_lora"]
)
def test_outputs_and_gradients_are_those_of_peft(made: Path, tmp_path: Path, name: str) -> None:
    folder = made / name
    clip, given = clip_jax.load(folder / "base"), np.load(folder / "results.npz")
    adapter, scale = read_peft(folder / "adapter", clip.config, clip.params)

    def loss(adapter: Any) -> tuple[jax.Array, Any]:
        out = embeds(clip, given, adapter, scale)
        return sum((out[tower] * given[f"weights_{tower}"]).sum() for tower in TOWERS), out

    leaves = {path: jnp.asarray(leaf) for path, leaf in adapter.items()}
    gradients, found = jax.jit(jax.grad(loss, has_aux=True))(leaves)
    assert difference(found, given) < 1e-5
    assert difference(found, plain(clip, given)) > 0.05  # the adapter does something
    ours = Clip(clip.config, merged(clip.params, adapter, scale))
    for whole in (ours, clip_jax.load(folder / "merged")):
        assert difference(found, plain(whole, given)) < 1e-5

    compared = 0
    for module, site in sites_by_module(clip.config, clip.params).items():
        for end, part in ENDS.items():
            path = f"{site.path}_{end}"
            if path not in gradients or (name == "clip_ranks" and end == "b"):
                continue  # there b holds the module's own factor
            prefix = f"gradient/base_model.model.{module}.{part}."
            theirs = given[next(key for key in given if key.startswith(prefix))]
            gradient = to_peft(np.asarray(gradients[path]), part, site).reshape(theirs.shape)
            assert np.abs(gradient - theirs).max() < 1e-5 * max(1, np.abs(theirs).max()), path
            compared += 1
    there = [key for key in given if "lora" in key and not (name == "clip_ranks" and "_B" in key)]
    assert compared == len(there)

    def write() -> None:
        write_peft(tmp_path / "ours", clip.config, clip.params, adapter, scale, "base")

    if name == "clip_stabilised":  # it has a module that was trained whole
        with pytest.raises(UserError, match="vision/projection"):
            write()
        return
    write()
    program("read", folder, tmp_path / "ours", tmp_path / "read.npz")
    assert difference(np.load(tmp_path / "read.npz"), given) < 1e-5
    again, factor = read_peft(tmp_path / "ours", clip.config, clip.params)
    assert again.keys() == adapter.keys()
    assert factor == pytest.approx(scale)
