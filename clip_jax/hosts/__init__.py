"""Several processes as one: joining, agreeing, memory."""
