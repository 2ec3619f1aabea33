"""Implementations of attention: which one runs where, and the one for TPUs."""
