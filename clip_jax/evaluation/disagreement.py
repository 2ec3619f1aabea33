"""Examples on which two models disagree: images that one of them gets right, and queries that one
of them ranks higher."""

from typing import NamedTuple

import numpy as np

from clip_jax.data.records import Source
from clip_jax.evaluation.comparison import Pair, are_alike
from clip_jax.evaluation.pictures import (
    RANKS,
    SHOWN,
    has_queries,
    query_records,
    query_texts,
    thumbnails,
)
from clip_jax.evaluation.results import Row

Samples = dict[str, np.ndarray]


class Example(NamedTuple):
    """One image, with what the better and the worse model say of it.

    An answer is (class, confidence in [0, 1]), or ("", rank from 1) for a query.
    """

    picture: np.ndarray  # uint8 (H, W, 3)
    text: str  # the true class, or the query
    better: tuple[str, float]
    worse: tuple[str, float]


class Disagreement(NamedTuple):
    """Examples on which the model of one row is better than that of another."""

    better: Row
    worse: Row
    total: int  # of all such examples, of which at most SHOWN are here
    examples: list[Example]

    @property
    def is_retrieval(self) -> bool:
        """Whether the answers are ranks of queries."""
        return not self.examples[0].better[0]


def disagreements(pair: Pair, source: Source) -> list[Disagreement]:
    """Returns the examples for either model that is better on some, the first one's before.

    Of images these are the surest wrong answers first, of queries the greatest differences of rank.
    Rows of other tasks have none.

    Args:
      source: the data of both rows.
    """
    found = []
    for one in (pair, Pair(pair.second, pair.first, pair.of_second, pair.of_first)):
        better, worse = one.of_first, one.of_second
        if not are_alike(better, worse):
            continue
        if "predictions" in better and "predictions" in worse:
            total, examples = image_examples(better, worse, source)
        elif has_queries(better) and has_queries(worse):
            total, examples = _queries(better, worse, source)
        else:
            continue
        if examples:
            found.append(Disagreement(one.first, one.second, total, examples))
    return found


def image_examples(better: Samples, worse: Samples, source: Source) -> tuple[int, list[Example]]:
    """Returns how many images the better one alone gets right, and some of them.

    Both have the arrays of `evaluate_classifier`, and `classnames` and `records`.
    """
    truth = better["classnames"][better["labels"]]
    answers = [each["classnames"][each["predictions"]] for each in (better, worse)]
    chosen = np.flatnonzero(
        (better["predictions"] == better["labels"]) & (worse["predictions"] != worse["labels"])
    )
    shown = chosen[np.argsort(-worse["confidence"][chosen], kind="stable")][:SHOWN]
    pictures = thumbnails(source, better["records"][shown])
    examples = [
        Example(
            picture,
            str(truth[n]),
            (str(answers[0][n]), float(better["confidence"][n])),
            (str(answers[1][n]), float(worse["confidence"][n])),
        )
        for n, picture in zip(shown, pictures, strict=True)
    ]
    return len(chosen), examples


def _queries(better: Samples, worse: Samples, source: Source) -> tuple[int, list[Example]]:
    ahead = worse[RANKS] - better[RANKS]
    shown = np.argsort(-ahead, kind="stable")[:SHOWN]
    shown = shown[ahead[shown] > 0]
    pictures = thumbnails(source, query_records(better, shown))
    texts = query_texts(source, better, shown)
    examples = [
        Example(picture, text, ("", float(better[RANKS][n])), ("", float(worse[RANKS][n])))
        for n, text, picture in zip(shown, texts, pictures, strict=True)
    ]
    return int((ahead > 0).sum()), examples
