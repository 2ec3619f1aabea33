"""The recipe "A layout of weights" of docs/architecture.md: a file, and nothing else."""

import sys
from pathlib import Path

import numpy as np
import pytest
from recipes import recipe
from tiny_clip import assert_same_params, tiny

import clip_jax
from clip_jax.weights import layouts


def test_a_file_is_all_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "spanish.py").write_text(recipe("A layout of weights"))
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path / "outside")])

    clip = tiny()
    clip.save(tmp_path / "modelo", format="spanish")
    names = {path.name for path in (tmp_path / "modelo").iterdir()}
    assert names == {"modelo.json", "pesos.safetensors", "README.md"}
    back = clip_jax.load(tmp_path / "modelo")
    assert back.config == clip.config
    assert_same_params(clip.params, back.params)
    images = np.zeros((1, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(back.encode_image(images), clip.encode_image(images))
    clip.save(tmp_path / "modelo", format="spanish")  # an older model is replaced
    with pytest.raises(clip_jax.UserError, match="choose one of clip_jax, huggingface, open_clip,"):
        clip.save(tmp_path / "other", format="german")
    monkeypatch.delitem(sys.modules, "clip_jax.weights.layouts.spanish")
