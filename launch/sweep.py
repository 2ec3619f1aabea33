"""Runs the sweep of a config file: `python -m clip_jax.sweep`, from anywhere in the repository."""

import runpy

if __name__ == "__main__":
    runpy.run_module("clip_jax.sweep", run_name="__main__", alter_sys=True)
