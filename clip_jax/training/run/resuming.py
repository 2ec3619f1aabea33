"""Checks that a run goes on as it was begun."""

import json
import logging
import re
from pathlib import Path
from typing import Any

from jax.experimental import multihost_utils

from clip_jax.adaptation.folder import hash_of_base
from clip_jax.errors import UserError
from clip_jax.models.config import ClipConfig, differences
from clip_jax.models.fields import EFFECTS, RESUMABLE
from clip_jax.training import config as configs
from clip_jax.training.config import TrainConfig


def check_same_model(architecture: ClipConfig, identity: dict[str, Any], workdir: Path) -> None:
    """Raises `UserError` if the checkpoints in `workdir` have another architecture."""
    saved = ClipConfig.from_dict(identity["architecture"])
    fixed = tuple(effect for effect in EFFECTS if effect not in RESUMABLE)
    different = differences(saved, architecture, fixed)
    if different:
        changes = ", ".join(f"{path}: {a} -> {b}" for path, (a, b) in different.items())
        raise UserError(
            f"--workdir={workdir}: holds a run of another architecture ({changes}); "
            "use another workdir, or the configuration it was made with"
        )


def check_resumable(config: TrainConfig, saved: dict[str, Any], workdir: Path) -> None:
    """Warns of settings that differ from the checkpoint's.

    Raises `UserError` for those that cannot change: the tokenizer, and settings that shape the
    optimizer's state (its name, options, frozen parameters, the adapter). Rates, decay and
    micro-batches may.
    """
    fixed = re.compile(
        r"(tokenizer|adapter|adversary)\..*|optimizer\.(name|options(\..*)?|freeze|first_moment_dtype)"
    )
    now = json.loads(json.dumps(configs.to_dict(config)))
    before, now = configs.flat_values(saved), configs.flat_values(now)
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        changes_tree = name in ("optimizer.clip_norm", "optimizer.ema_decay") and None in (old, new)
        if changes_tree or fixed.fullmatch(name):
            raise UserError(
                f"config.{name}={new}: the run in {workdir} was begun with {old}, and cannot go on "
                "otherwise; use another workdir"
            )
        logging.warning("resuming with config.%s=%s (was %s)", name, new, old)


def hash_checked(base: Any, identity: dict[str, Any] | None, config: TrainConfig) -> str:
    """Hashes the base of a run's adapter. Raises `UserError` if it began with another."""
    found = hash_of_base(multihost_utils.process_allgather(base, tiled=True))
    if identity is not None and identity["base_hash"] != found:
        raise UserError(
            f"config.init.source={config.init.source!r}: has hash {found[:16]}, and the run was"
            f" begun from a model with hash {identity['base_hash'][:16]}; give that one"
        )
    return found
