"""The recipe "A loss" of docs/architecture.md: one added in a configuration file trains."""

from pathlib import Path

import numpy as np
import pytest
from recipes import config_with

from clip_jax.errors import UserError
from clip_jax.losses import LOSSES
from clip_jax.training.config import build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.run.loop import train


def test_a_loss_of_a_configuration_file(tmp_path: Path) -> None:
    values = config_with("A loss", tmp_path, steps=2, mesh__data=8, loss="image_to_text")
    try:
        train(build_config(values), tmp_path / "run")
    finally:
        del LOSSES["image_to_text"]
    first, _ = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert first["loss"] == pytest.approx(np.log(64), abs=3.0)  # guessing among the batch
    with pytest.raises(UserError, match=r"config\.loss='image_to_text': choose one of"):
        build_config(values)
