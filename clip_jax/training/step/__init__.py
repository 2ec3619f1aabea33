"""Compiled part of training: pure functions of a state and a batch."""
