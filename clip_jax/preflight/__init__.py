"""Finds out whether a run fits hardware that one does not have, by compiling it for that.

The program is `python -m clip_jax.preflight`. In Python: `topology.find_target`, then
`compile.plan_run`, then `run.preflight`.
"""
