"""Evaluators: pure protocols that take two functions, `embed_image` and `embed_text`, and data."""
