"""The --workers flag, a command's number of processes."""

import os

from absl import flags


def define_workers(values: flags.FlagValues) -> flags.FlagHolder[int]:
    """Adds --workers to a command's flags."""
    return flags.DEFINE_integer(
        "workers",
        os.cpu_count() or 1,
        "Processes; 0 does the work in this one.",
        lower_bound=0,
        flag_values=values,
    )
