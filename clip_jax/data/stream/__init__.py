"""From a source to batches: order, workers, an iterator that can be saved."""
