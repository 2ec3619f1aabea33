"""Compiles a run for hardware that need not be there, and says whether it fits.

python -m clip_jax.preflight --config=configs/openai_vit_b32.py --topology=v5e:8x8
python -m clip_jax.preflight --config=configs/quickstart.py --topology=cpu:8
"""

import json
import sys

from absl import flags
from ml_collections import config_flags

from clip_jax import command_line
from clip_jax.arguments import config_with_home, local_path
from clip_jax.errors import UserError
from clip_jax.files.disk import telling, write_text

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Configuration file, such as configs/openai_vit_b32.py.", lock_config=True
)
_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "TPU slice such as v5p:8x8x4 or 2xv5e:16x16; cpu:8; local."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write, besides the text.")
_EVALUATION = flags.DEFINE_boolean("evaluation", True, "Compile the evaluation step too.")
_EXPLAIN = flags.DEFINE_boolean(
    "explain_sharding", False, "Print what lies where, and compile nothing."
)
_SUGGEST = flags.DEFINE_boolean("suggest", False, "Try other settings, and rank those that fit.")
_MINUTES = flags.DEFINE_float("suggest_minutes", 15.0, "Time for that.", lower_bound=0.0)


def main() -> int:
    """Plans, compiles and prints the report; returns 1 if the run does not fit."""
    values = command_line.config_dict(_CONFIG)
    output = local_path(_OUTPUT.value, "--output") if _OUTPUT.value else None
    if output is not None and (output.is_dir() or not output.absolute().parent.is_dir()):
        raise UserError(f"--output={output}: must be a file in a folder that exists")
    from clip_jax.preflight.topology import find_target, known_topologies

    if _TOPOLOGY.value is None:
        raise UserError(f"--topology: is missing; known are {known_topologies()}")
    # This chooses the platform, so it must come before anything touches a device.
    target = find_target(_TOPOLOGY.value)
    import jax

    # The report measures compilation, which a cache hit would skip.
    jax.config.update("jax_enable_compilation_cache", False)
    from clip_jax.preflight.compile import plan_run
    from clip_jax.preflight.report import format_report
    from clip_jax.preflight.run import preflight
    from clip_jax.preflight.suggest import format_suggestions, suggest
    from clip_jax.sharding import explain
    from clip_jax.training.config import build_config

    if not values.data.path:
        values.data.path = "(not needed)"
    run = plan_run(build_config(values), target)
    if _EXPLAIN.value:
        state = run.state
        parts = {
            "params": state.params,
            "optimizer": state.opt_state,
            "ema": state.ema_params,
            "base": state.base,
        }
        print(explain(run.mesh, parts))
        return 0
    report = preflight(run, _EVALUATION.value)
    print(format_report(report))
    if _SUGGEST.value:
        report["suggestions"] = suggest(run, report, 60 * _MINUTES.value)
        print("\n" + format_suggestions(report["suggestions"]))
    if output is not None:
        with telling(f"--output={output}"):
            write_text(output, json.dumps(report, indent=1) + "\n")
        print(f"written: {output}")
    return 0 if report["fits"] else 1


if __name__ == "__main__":
    command_line.run(main, config_with_home(sys.argv))
