"""Recalls and ranks of retrieval with their intervals, as fields of a row."""

from collections.abc import Sequence

import numpy as np

from clip_jax.evaluation.metrics.ranking import expected_ranks, hits_at_k
from clip_jax.evaluation.metrics.rows import (
    Estimate,
    mean_estimate,
    median_estimate,
    metrics_row,
    share_estimate,
)
from clip_jax.evaluation.retrieval import (
    DEFAULT_KS,
    Queries,
    check_ks,
    image_to_image_queries,
    query_sizes,
    retrieval_queries,
)
from clip_jax.evaluation.zero_shot import GROUPS, METRIC


def retrieval_metrics(
    image_embeds,
    text_embeds,
    image_of_text,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    texts: Sequence[str] | None = None,
    image_query_mask=None,
    text_query_mask=None,
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Measures recalls, median and mean ranks of (N, D) images and (T,) captions, both ways.

    Arguments and errors are those of `retrieval_recalls`, and so are the results, each recall with
    its 95 % limits `NAME_low` and `NAME_high`. Also `image_to_text_median_rank` and
    `image_to_text_mean_rank`, from 1, and those of `text_to_image`, with limits, and
    `mean_recall_at_1` over both directions. An image and its
    captions are drawn together, for they are dependent; the gallery is not drawn.

    Also returns the arrays behind them: `image_to_text_ranks` and `text_to_image_ranks` (Q,), each
    query's contribution to a recall under `METRIC` and its name, its image under `GROUPS`.
    """
    ks = check_ks(ks)
    masks = image_query_mask, text_query_mask
    found = retrieval_queries(image_embeds, text_embeds, image_of_text, texts, *masks)
    estimates: dict[str, Estimate] = {}
    samples: dict[str, np.ndarray] = {}
    for direction, queries in found.items():
        estimates |= _estimates(direction, queries, ks)
        samples |= _samples(direction, queries, ks)
    if 1 in ks:  # the mean over both directions, whose queries are images and captions
        name, both = "mean_recall_at_1", list(found.values())
        total = sum(len(queries.counts) for queries in both)
        hits = [hits_at_k(x.counts, 1) * total / (2 * len(x.counts)) for x in both]
        samples[f"{METRIC}{name}"] = np.concatenate(hits)
        samples[f"{GROUPS}{name}"] = np.concatenate([queries.images for queries in both])
        estimates[name] = share_estimate(samples[f"{METRIC}{name}"], samples[f"{GROUPS}{name}"])
    return metrics_row(estimates) | query_sizes(image_embeds, text_embeds, found), samples


def image_to_image_metrics(
    image_embeds, labels, ks: Sequence[int] = DEFAULT_KS
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Measures how an image finds another one of its class, by recalls and ranks.

    Args:
      image_embeds: float (N, D), L2-normalised. Each image is a query if its class has another, and
        is left out of its own gallery.
      labels: int (N,), classes.
      ks: the k of recall@k.

    Returns:
      `image_to_image_recall_at_{k}`, `image_to_image_median_rank`, `image_to_image_mean_rank`, the
      95 % limits `NAME_low`, `NAME_high` of each, `num_images`, `num_image_queries`; and the arrays
      behind them, as those of `retrieval_metrics`.

    Raises:
      UserError: embeddings that are not finite, labels that do not fit, no two images of one class.
    """
    ks = check_ks(ks)
    queries = image_to_image_queries(image_embeds, labels)
    row = metrics_row(_estimates("image_to_image", queries, ks))
    sizes = {"num_images": len(image_embeds), "num_image_queries": len(queries.counts)}
    return row | sizes, _samples("image_to_image", queries, ks)


def _samples(direction: str, queries: Queries, ks: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the arrays behind the metrics of one direction."""
    samples = {f"{direction}_ranks": expected_ranks(queries.counts)}
    for k in ks:
        samples[f"{METRIC}{direction}_recall_at_{k}"] = hits_at_k(queries.counts, k)
        samples[f"{GROUPS}{direction}_recall_at_{k}"] = queries.images
    return samples


def _estimates(direction: str, queries: Queries, ks: Sequence[int]) -> dict[str, Estimate]:
    """Returns the metrics of one direction by name."""
    counts, images = queries
    ranks = expected_ranks(counts)
    return {
        **{f"{direction}_recall_at_{k}": share_estimate(hits_at_k(counts, k), images) for k in ks},
        f"{direction}_median_rank": median_estimate(ranks, images),
        f"{direction}_mean_rank": mean_estimate(ranks, images),
    }
