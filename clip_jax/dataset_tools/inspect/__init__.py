"""What `python -m clip_jax.data inspect` finds, and the page that shows it."""
