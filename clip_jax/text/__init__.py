"""Text: from strings to int32 ids."""
