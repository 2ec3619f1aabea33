"""The recipe "An architecture" of docs/architecture.md: a row, and nothing else."""

import numpy as np
import pytest
from recipes import recipe

import clip_jax
from clip_jax.models.architectures import ARCHITECTURES


def test_a_row_is_all_it_takes() -> None:
    try:
        exec(recipe("An architecture"), {})
        assert clip_jax.list_models()[-1] == "Tiny-ViT-16"
        clip = clip_jax.create("Tiny-ViT-16")
        assert clip.config == ARCHITECTURES["Tiny-ViT-16"]
        assert clip_jax.count_parameters("Tiny-ViT-16") == clip.num_parameters
        assert clip.encode_image(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 64)
        with pytest.raises(clip_jax.UserError, match="did you mean 'Tiny-ViT-16'"):
            clip_jax.create("Tiny-VIT-16")
    finally:
        del ARCHITECTURES["Tiny-ViT-16"]
