"""Images: from encoded bytes to uint8 pixels."""
