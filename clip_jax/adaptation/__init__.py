"""Adaptation of a model: what is added to its parameters, how that enters, and how it learns."""
