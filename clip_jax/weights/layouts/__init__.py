"""Layouts of weights, one file each."""
