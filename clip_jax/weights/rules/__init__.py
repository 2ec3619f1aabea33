"""A rule a tensor, read both ways."""
