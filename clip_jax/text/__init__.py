"""From strings to int32 ids."""
