"""Tar shards: index, captions, reads."""
