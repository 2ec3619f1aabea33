"""What a run leaves to be read: metrics, summary, profile."""
