"""WinoGAViL: Jaccard's index against scikit-learn's, the prompt, and tables that are none."""

from pathlib import Path

import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.evaluation.associations import (
    Association,
    jaccard,
    jaccard_metrics,
    read_associations,
)


def test_index_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(rng.integers(5, 13))
        scores, true = rng.normal(size=count), rng.permutation(count) < rng.integers(1, count)
        predicted = np.isin(np.arange(count), np.argsort(scores)[-true.sum() :])
        assert jaccard(scores, true) == pytest.approx(metrics.jaccard_score(true, predicted))


def test_means_by_the_number_of_candidates() -> None:
    found = jaccard_metrics(np.asarray([0.0, 1.0, 0.5, 0.5]), (5, 6, 10, 12))
    assert found == {"jaccard": 0.5, "jaccard_5_to_6": 0.5, "jaccard_10_to_12": 0.5}
    assert set(jaccard_metrics(np.asarray([1.0]), (10,))) == {"jaccard", "jaccard_10_to_12"}


@pytest.mark.parametrize(("cue", "prompt"), [("Apple", "An apple"), ("full moon", "A full moon")])
def test_prompt(cue: str, prompt: str) -> None:
    assert Association(cue, ("a",), (True,)).prompt == prompt


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cue,candidates\nx,['a']", r"row 1: 'associations'; accepted are columns cue"),
        ("cue,candidates,associations\nx,a b,['a']", r"row 1: .*; accepted"),
        ("cue,candidates,associations\nx,\"['a']\",\"['b']\"", r"row 1: associations \['b'\] of"),
        ("cue,candidates,associations\nx,\"['a']\",[]", r"row 1: associations \[\] of"),
        ("cue,candidates,associations\n", "has no row"),
    ],
)
def test_wrong_tables(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_associations(str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "more.csv").write_text("")
    with pytest.raises(UserError, match="has 2 CSV files"):
        read_associations(str(tmp_path))
