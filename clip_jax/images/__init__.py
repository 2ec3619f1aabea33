"""From encoded bytes to uint8 pixels."""
