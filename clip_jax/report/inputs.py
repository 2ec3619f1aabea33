"""Tolerant reader of a run's folder, of which any part may be missing."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from clip_jax.clip import Clip
from clip_jax.errors import UserError
from clip_jax.loading import load
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.log.summary import Row, read_config


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """A run's configuration and metrics, and its model, loaded on demand."""

    workdir: Path
    config: dict[str, Any]  # config.json unparsed, so that runs of older versions stay readable
    metrics: list[Row]
    evaluations: list[Row]

    def setting(self, key: str, default: Any = None) -> Any:
        """A config value by its dotted key: `setting("data.path")`."""
        value: Any = self.config
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return default
            value = value[part]
        return value

    @functools.cached_property
    def clip(self) -> Clip:
        """The trained model. Raises `UserError` if none can be read."""
        clip = load(self.workdir)
        # Prompts and captions may be longer than the context of a small model.
        return Clip(clip.config, clip.params, clip.tokenizer.with_truncation(True))


def read_run(workdir: Path) -> RunFiles:
    """Reads a run's folder. Raises `UserError` if it has neither a config nor metrics."""
    if not workdir.is_dir():
        raise UserError(f"--workdir={workdir}: no such folder; give the folder of a run")
    run = RunFiles(
        workdir=workdir,
        config=read_config(workdir),
        metrics=read_rows(workdir / "metrics.jsonl"),
        evaluations=read_rows(workdir / "evaluation.jsonl"),
    )
    if not run.config and not run.metrics:
        raise UserError(
            f"--workdir={workdir}: holds neither config.json nor metrics.jsonl; "
            "give the folder of a run"
        )
    return run
