"""Work of a host around the training step."""
