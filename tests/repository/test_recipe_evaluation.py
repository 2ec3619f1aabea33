"""The recipe "An evaluation" of docs/architecture.md: one added in a configuration file runs."""

from pathlib import Path

import pytest
from recipes import config_with

from clip_jax.errors import UserError
from clip_jax.evaluation.tasks import TASKS
from clip_jax.training.config import build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.run.loop import train


def test_a_task_of_a_configuration_file(tmp_path: Path) -> None:
    evaluations = ({"task": "synonyms", "every_steps": 1},)
    values = config_with("An evaluation", tmp_path, steps=2, mesh__data=8, evaluations=evaluations)
    try:
        train(build_config(values), tmp_path / "run")
    finally:
        del TASKS["synonyms"]
    rows = read_rows(tmp_path / "run" / "evaluation.jsonl")
    assert [(row["step"], row["task"], row["dataset"]) for row in rows] == [
        (1, "synonyms", "2 pairs"),
        (2, "synonyms", "2 pairs"),
    ]
    assert all(-1 <= row["mean_cosine"] <= 1 for row in rows)
    with pytest.raises(UserError, match=r"config\.evaluations\[0\]\.task='synonyms': choose of"):
        train(build_config(values), tmp_path / "run")
