"""`python -m clip_jax.data convert`: any format to tars or ArrayRecord."""
