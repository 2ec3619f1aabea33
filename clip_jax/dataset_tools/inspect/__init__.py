"""`python -m clip_jax.data inspect`: its findings and their page."""
