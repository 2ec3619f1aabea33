"""What all tests share: eight CPU devices, one compilation cache, one tiny trained run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
CACHE = REPOSITORY / ".cache"

# Before jax is imported anywhere: children of the tests inherit these too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "compilation"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("CLIP_JAX_CACHE", str(CACHE / "clip_jax"))

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


def tiny_config(**changes):
    """A glyph run of a second: few steps of the smallest towers. `changes`: keys, "__" for "."."""
    from clip_jax.training.config import default_config

    config = default_config()
    config.model.name = "custom"
    config.model.embed_dim = 16
    config.model.image_size = 32
    config.model.patch_size = 16
    config.model.vision_width = 16
    config.model.vision_layers = 1
    config.model.vision_heads = 2
    config.model.vision_mlp_dim = 32
    config.model.context_length = 12
    config.model.text_width = 16
    config.model.text_layers = 1
    config.model.text_heads = 2
    config.model.text_mlp_dim = 32
    config.tokenizer.vocab_size = 400
    config.data.format = "glyphs"
    config.data.path = "validation"
    config.augmentation.shift = 0.05
    config.optimizer.learning_rate = 1e-2
    config.optimizer.warmup_steps = 5
    config.batch_size = 64
    config.steps = 40
    config.log_every_steps = 1
    config.checkpoint.every_steps = 10
    config.report = False
    for key, value in changes.items():
        *groups, last = key.split("__")
        group = config
        for name in groups:
            group = group[name]
        group[last] = value
    return config


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of sample data beside the repository; tests that need it skip where it is not."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the folder shared/data is not beside the repository")
    return folder


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run on glyphs, with both glyph evaluations."""
    from clip_jax.training.config import build_config
    from clip_jax.training.loop import train

    workdir = tmp_path_factory.mktemp("tiny_run") / "run"
    tasks = ("glyphs/letters", "glyphs/retrieval")
    config = tiny_config(evaluation__tasks=tasks, evaluation__every_steps=20, mesh__data=8)
    train(build_config(config), workdir)
    return workdir
