"""Floor 0: the towers as pure `flax.linen` modules."""
