"""Adaptation of a model to labelled images: `python -m clip_jax.adapt`."""
