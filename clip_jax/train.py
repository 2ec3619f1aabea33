"""Trains a CLIP, or goes on training one.

python -m clip_jax.train --config=configs/quickstart.py --workdir=runs/quickstart

Several processes train one run: on a TPU pod, under SLURM or Open MPI with --multihost, elsewhere
with --coordinator_address, --num_processes and --process_id.
"""

import sys

from absl import flags
from ml_collections import config_flags

from clip_jax import command_line, job_flags
from clip_jax.arguments import config_with_home, local_path
from clip_jax.errors import INTERRUPTED, UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, such as configs/quickstart.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; the same folder resumes it.")
flags.adopt_module_key_flags(job_flags)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps",
    None,
    "FIRST:LAST: write a trace of these steps to workdir/profile, for XProf or TensorBoard.",
)
_DUMP_HLO = flags.DEFINE_boolean(
    "dump_hlo", False, "Write the compiled training step and its memory to workdir/hlo."
)
_EXPLAIN_SHARDING = flags.DEFINE_boolean(
    "explain_sharding",
    False,
    "Print what lies where (parameters and optimizer state), and exit without training.",
)


def main() -> int:
    """Builds the configuration, trains, and prints a summary."""
    config_dict = command_line.config_dict(_CONFIG)
    if _WORKDIR.value is None and not _EXPLAIN_SHARDING.value:
        raise UserError("--workdir: is missing; give a folder, such as --workdir=runs/quickstart")
    workdir = None if _WORKDIR.value is None else local_path(_WORKDIR.value, "--workdir")
    from clip_jax.training.config import build_config
    from clip_jax.training.log.profile import Profiling, parse_steps

    config = build_config(config_dict)
    steps = None if _PROFILE_STEPS.value is None else parse_steps(_PROFILE_STEPS.value)
    with job_flags.joined_job():
        import jax

        from clip_jax.training.log.summary import print_summary
        from clip_jax.training.run.loop import train

        if _EXPLAIN_SHARDING.value or workdir is None:
            from clip_jax.training.run.opening import explain_sharding

            text = explain_sharding(config)
            if jax.process_index() == 0:
                print(text)
            return 0
        clip = train(config, workdir, Profiling(steps, _DUMP_HLO.value))
        if clip is not None and jax.process_index() == 0:
            if config.report:
                from clip_jax.report import write_report

                write_report(workdir)
            print_summary(workdir)
    return 0


if __name__ == "__main__":
    command_line.run(main, config_with_home(sys.argv), INTERRUPTED)
