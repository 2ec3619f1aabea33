"""Runs the sweep of a config file: `python -m clip_jax.sweep`, from anywhere in the repository."""

from clip_jax.sweep.__main__ import main

if __name__ == "__main__":
    main()
