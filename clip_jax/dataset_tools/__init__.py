"""Commands of `python -m clip_jax.data`, one file each, and their shared parts."""
