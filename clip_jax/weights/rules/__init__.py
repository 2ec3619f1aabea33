"""Rules, one per tensor, that are applied in both directions."""
