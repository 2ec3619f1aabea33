"""What `python -m clip_jax.data` does: a file a command, and what the commands share."""
