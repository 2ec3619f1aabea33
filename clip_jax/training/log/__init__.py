"""Records of a run for the user: metrics, summary, profile."""
