"""Evaluation sets by name: the table of them, where their data are, and what is measured."""
