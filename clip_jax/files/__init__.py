"""Files on local disk or in object stores: patterns, retries, cache."""
