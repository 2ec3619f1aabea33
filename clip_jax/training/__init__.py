"""Floor 2: how a model is trained."""
