"""Labelled examples in arrays of one size, so that runs of any number of shots share a program."""

from typing import NamedTuple

import jax

Array = jax.Array


class Shots(NamedTuple):
    """N image features with their classes; rows of weight 0 only fill the arrays up.

    Every class has at least one row of weight 1.

    Attributes:
      features_ND: float32, rows of length one.
      labels_N: int32, classes; any class in rows of weight 0.
      weights_N: float32, 1 or 0.
    """

    features_ND: Array
    labels_N: Array
    weights_N: Array
