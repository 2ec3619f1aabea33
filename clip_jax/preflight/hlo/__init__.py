"""Cost of a compiled program, from its text."""
