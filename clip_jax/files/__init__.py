"""Bytes here or in a store: patterns, retries, cache."""
