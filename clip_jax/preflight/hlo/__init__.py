"""What a compiled program costs, from its text."""
