"""What all tests share: eight CPU devices, one compilation cache, one tiny trained run."""

import os
from pathlib import Path

import pytest
from places import CACHE, SHARED_DATA, SUPPORT
from tiny import tiny_config

# Before jax is imported anywhere: children of the tests inherit these too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE / "compilation"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tiny programs run once or a few times: their compilation is what takes long.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("CLIP_JAX_CACHE", str(CACHE / "clip_jax"))
paths = [str(SUPPORT), os.environ.get("PYTHONPATH", "")]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))

import jax  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of sample data beside the repository; tests that need it skip where it is not."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder shared/data is not beside the repository")
    return SHARED_DATA


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own."""
    monkeypatch.setenv("CLIP_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training run on glyphs, with both glyph evaluations."""
    from clip_jax.training.config import build_config
    from clip_jax.training.run.loop import train

    workdir = tmp_path_factory.mktemp("tiny_run") / "run"
    tasks = ("glyphs/letters", "glyphs/retrieval")
    evaluations = tuple({"task": task, "every_steps": 20} for task in tasks)
    config = tiny_config(evaluations=evaluations, mesh__data=8)
    train(build_config(config), workdir)
    return workdir
