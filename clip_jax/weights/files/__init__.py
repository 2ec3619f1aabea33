"""Files of named tensors."""
