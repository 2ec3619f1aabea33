"""Fairness: rates of labels by group of people, skew of rankings, and projections against both."""
