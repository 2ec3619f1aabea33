"""Classes of one sample each: the mean per class is the accuracy, and as uncertain."""

import numpy as np
import pytest

from clip_jax.evaluation.metrics.classification import mean_per_class
from clip_jax.evaluation.metrics.paired import paired_difference


def test_contributions_of_classes_of_one_sample_vary() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 2, 50).astype(float) for _ in range(2))
    labels = np.arange(50)
    np.testing.assert_allclose(mean_per_class(first, labels), first)
    per_class = paired_difference(mean_per_class(first, labels), mean_per_class(second, labels))
    plain = paired_difference(first, second)
    assert per_class == pytest.approx(plain)
