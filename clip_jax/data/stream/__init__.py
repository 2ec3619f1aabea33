"""Batches from a source: order, workers, an iterator whose state can be saved."""
