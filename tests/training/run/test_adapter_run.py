"""Runs that train an adapter: their folder, what loads it, resuming, mistakes."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job import Job
from tiny import tiny_config, write_config

import clip_jax
from clip_jax.adapted import AdaptedClip
from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import Embedders
from clip_jax.evaluation.tasks import run_task
from clip_jax.training.config import build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.run.loop import train

TASK = "glyphs_validation/letters"
TARGETS = ("query", "value", "mlp")


def changes(base: Path, method: str, **more: Any) -> dict[str, Any]:
    """Returns what a tiny run changes to train an adapter of `base`, whose architecture it has."""
    unset = {f"model__{name}": None for name in ("embed_dim", "image_size", "context_length")}
    for tower in ("vision", "text"):
        fields = ("width", "layers", "heads", "mlp_dim")
        unset |= {f"model__{tower}__{name}": None for name in fields}
    return {
        **unset, "model__vision__patch_size": None, "model__name": "", "init__source": str(base),
        "adapter__method": method, "steps": 6, "optimizer__ema_decay": 0.9,
        "optimizer__learning_rate": 0.1,
        "evaluations": ({"task": TASK, "every_steps": 3},), **more,
    }  # fmt: skip


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("adapter") / "run"
    options = {"adapter__rank": 4, "adapter__alpha": 30.0, "adapter__targets": TARGETS}
    train(build_config(tiny_config(**changes(tiny_run, "lora", **options))), workdir)
    return workdir


def test_the_merged_model_and_the_adapter_are_one(tiny_run: Path, run: Path) -> None:
    model, adapted = clip_jax.load(run), clip_jax.load(tiny_run, adapter=run)
    assert not isinstance(model, AdaptedClip)
    assert isinstance(adapted, AdaptedClip)
    embeds = model.encode_image(pixels())
    np.testing.assert_allclose(adapted.encode_image(pixels()), embeds, rtol=0, atol=1e-6)
    assert np.abs(embeds - clip_jax.load(tiny_run).encode_image(pixels())).max() > 1e-3
    facts = json.loads((run / "adapter" / "adapter.json").read_text())
    assert (facts["base"], facts["method"]) == (str(tiny_run), "lora")


def test_evaluations_see_the_adapter(tiny_run: Path, run: Path) -> None:
    def measured(source: Path) -> dict[str, Any]:
        clip = clip_jax.load(source)
        embedders = Embedders(clip.encode_image, clip.encode_text, clip.transform, clip.logit_scale)
        return run_task(TASK, embedders, TaskData())[0]

    rows = read_rows(run / "evaluation.jsonl")
    assert [row["step"] for row in rows] == [3, 6]
    wanted, base = measured(run), measured(tiny_run)
    losses = [float(row["log_loss"]) for row in (rows[1], wanted, base)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[2] != pytest.approx(losses[1], rel=1e-5)


def test_a_checkpoint_holds_the_adapter_alone(run: Path, tmp_path: Path) -> None:
    folder = max((run / "checkpoints").glob("[0-9]*"))
    with pytest.raises(UserError, match="holds only an adapter; its run writes the model at its"):
        clip_jax.load(folder)
    sizes = json.loads((folder / "params" / "_METADATA").read_text())["tree_metadata"]
    assert all("query_" in key or "value_" in key or "mlp/" in key for key in sizes)


def test_resuming_needs_the_same_base_and_adapter(tiny_run: Path, run: Path) -> None:
    same = {"adapter__rank": 4, "adapter__alpha": 30.0, "adapter__targets": TARGETS, "steps": 8}
    with pytest.raises(UserError, match=r"config.init.source=.*: has hash .*was begun from a mode"):
        train(build_config(tiny_config(**changes(run, "lora", **same))), run)
    other = same | {"adapter__rank": 2}
    with pytest.raises(UserError, match=r"config.adapter.rank=2: the run in .* was begun with 4"):
        train(build_config(tiny_config(**changes(tiny_run, "lora", **other))), run)


@pytest.mark.slow
def test_an_adapter_that_cannot_be_merged(tiny_run: Path, tmp_path: Path) -> None:
    clip = train(build_config(tiny_config(**changes(tiny_run, "prefix"))), tmp_path / "run")
    assert clip is not None
    assert not (tmp_path / "run" / "model").exists()
    again = clip_jax.load(tmp_path / "run")
    assert (again.encode_image(pixels()) == clip.encode_image(pixels())).all()
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="holds a finished model but no checkpoint"):
        train(build_config(tiny_config(**changes(tiny_run, "prefix"))), tmp_path / "run")


@pytest.mark.slow
def test_killed_and_started_again_it_is_the_same_run(tiny_run: Path, tmp_path: Path) -> None:
    config = write_config(
        tmp_path, **changes(tiny_run, "lora", steps=12, checkpoint__every_steps=3, mesh__fsdp=4)
    )
    for name in ("whole", "killed"):
        with Job(tmp_path / name, [f"--config={config}"]) as job:
            if name == "killed":
                job.wait_for_checkpoint(3)
                job.signal(0, signal.SIGKILL)
            else:
                assert job.finish() == [0], job.outputs()
    with Job(tmp_path / "killed", [f"--config={config}"]) as job:
        assert job.finish() == [0], job.outputs()
        assert "resuming at step" in job.outputs()[0]
    models = [clip_jax.load(tmp_path / name) for name in ("whole", "killed")]
    assert models[0].fingerprint == models[1].fingerprint
    rows = [read_rows(tmp_path / name / "metrics.jsonl") for name in ("whole", "killed")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
