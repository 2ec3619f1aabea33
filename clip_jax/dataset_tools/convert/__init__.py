"""`python -m clip_jax.data convert`, from any format to tars or ArrayRecord."""
