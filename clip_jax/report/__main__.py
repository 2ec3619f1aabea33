"""Writes the report of a run again.

python -m clip_jax.report --workdir=runs/quickstart
"""

import sys

from absl import flags

from clip_jax import command_line
from clip_jax.arguments import local_path
from clip_jax.errors import UserError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run; report.html is written there.")


def main() -> int:
    """Writes the report and prints its path."""
    if not _WORKDIR.value:
        raise UserError("--workdir: is missing; give a run, such as --workdir=runs/quickstart")
    from clip_jax.report import write_report

    print(f"written: {write_report(local_path(_WORKDIR.value, '--workdir'))}")
    return 0


if __name__ == "__main__":
    command_line.run(main, sys.argv)
