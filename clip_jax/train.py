"""Trains a CLIP, or goes on training one.

python -m clip_jax.train --config=configs/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags
from ml_collections.config_dict import ConfigDict

from clip_jax import command_line
from clip_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, such as configs/quickstart.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; the same folder resumes it.")
_MULTIHOST = flags.DEFINE_boolean(
    "multihost", False, "Join the other processes of this job (TPU pod, SLURM, Open MPI)."
)


def main() -> int:
    """Builds the configuration, trains, says what came of it."""
    if _CONFIG.value is None:
        raise UserError("--config: is missing; give a file, such as --config=configs/quickstart.py")
    if not isinstance(_CONFIG.value, ConfigDict):
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        found = (
            "has no get_config() that returns a ConfigDict"
            if Path(path).exists()
            else "no such file"
        )
        raise UserError(f"--config={path}: {found}; give a file, such as configs/quickstart.py")
    if _WORKDIR.value is None:
        raise UserError("--workdir: is missing; give a folder, such as --workdir=runs/quickstart")
    from clip_jax.training.config import build_config

    config = build_config(_CONFIG.value)
    import jax

    if _MULTIHOST.value:
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"--multihost: the other processes cannot be joined: {error}"
            ) from error
    from clip_jax.training.loop import train
    from clip_jax.training.summary import print_summary

    workdir = Path(_WORKDIR.value).expanduser()
    clip = train(config, workdir)
    if clip is not None and jax.process_index() == 0:
        if config.report:
            from clip_jax.report import write_report

            write_report(workdir)
        print_summary(workdir)
    return 0


if __name__ == "__main__":
    command_line.run(main, sys.argv)
