"""One file a layout of weights."""
