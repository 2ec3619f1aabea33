"""Compilation of a run for hardware that is not present, to find out whether it fits.

The program is `python -m clip_jax.preflight`; in Python call `topology.find_target`,
`compile.plan_run` and `run.preflight`.
"""
