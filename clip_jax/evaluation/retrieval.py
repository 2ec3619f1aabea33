"""Image-text retrieval: recall@k both ways, without ever holding the N×M similarity matrix.

Protocol: recall@k is the share of queries with at least one positive among the k items of highest
inner product. Image-to-text queries are images, text-to-image queries are all captions, as in the
zero-shot retrieval of Radford et al. 2021, appendix E.1.

Ties are broken uniformly at random, in expectation (`metrics.ranking`).
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.sparse import csr_array

from clip_jax.arguments import shown, text_list, whole_number
from clip_jax.errors import UserError
from clip_jax.evaluation.metrics.checks import as_labels
from clip_jax.evaluation.metrics.ranking import hits_at_k

DEFAULT_KS = (1, 5, 10)
# One block of scores is 512 x 1024 float32 per device, 2 MiB, which a core's cache holds.
QUERIES_PER_BLOCK = 512
GALLERY_PER_BLOCK = 1024

# These pad ragged label arrays; they differ so that padding never matches padding.
_NO_QUERY_LABEL = -1
_NO_GALLERY_LABEL = -2
_NO_ITEM = -1  # the index of a padded gallery item, and of a query that is no gallery item


class Queries(NamedTuple):
    """Results of the queries of one direction."""

    counts: np.ndarray  # int32 (Q, 3), of `hits_at_k`
    images: np.ndarray  # int (Q,): the image of each; queries of one image are dependent


def retrieval_recalls(
    image_embeds: Any,
    text_embeds: Any,
    image_of_text: Any,
    ks: Sequence[int] = DEFAULT_KS,
    *,
    texts: Sequence[str] | None = None,
    image_query_mask: Any = None,
    text_query_mask: Any = None,
) -> dict[str, float]:
    """Computes recalls in [0, 1] for (N, D) images and their (T,) captions, both ways.

    Args:
      image_embeds: float (N, D), L2-normalised.
      text_embeds: float (T, D), L2-normalised.
      image_of_text: int (T,): caption t was written for image `image_of_text[t]`; every query
        image needs at least one caption.
      ks: the k of recall@k.
      texts: the captions (T). If given, a caption is a positive of every image that has a caption
        with the same text; otherwise only an image's own captions are positives.
      image_query_mask: bool (N,): which images are queries (default: all); the gallery is full.
      text_query_mask: bool (T,): which captions are queries.

    Returns:
      `image_to_text_recall_at_{k}`, `text_to_image_recall_at_{k}`, and the sizes `num_images`,
      `num_texts`, `num_image_queries`, `num_text_queries`.

    Raises:
      UserError: mismatched shapes or indices, embeddings that are not finite, a query without a
        positive, or no queries.
    """
    ks = check_ks(ks)
    masks = image_query_mask, text_query_mask
    found = retrieval_queries(image_embeds, text_embeds, image_of_text, texts, *masks)
    recalls = {
        f"{direction}_recall_at_{k}": float(hits_at_k(queries.counts, k).mean())
        for direction, queries in found.items()
        for k in ks
    }
    return recalls | query_sizes(image_embeds, text_embeds, found)


def retrieval_queries(
    image_embeds,
    text_embeds,
    image_of_text,
    texts: Sequence[str] | None = None,
    image_query_mask=None,
    text_query_mask=None,
) -> dict[str, Queries]:
    """Returns what each query of `image_to_text` and `text_to_image` found.

    Arguments and errors are those of `retrieval_recalls`. `metrics.ranking` gives hits and ranks of
    the queries, with which two models are compared (`metrics.paired`).
    """
    num_images, num_texts = len(image_embeds), len(text_embeds)
    image_of_text = np.asarray(image_of_text)
    _check_index(image_of_text, num_images, num_texts)
    if texts is None:
        image_labels, text_labels = np.arange(num_images)[:, None], image_of_text[:, None]
    else:
        image_labels, text_labels = caption_labels(texts, image_of_text, num_images)
    images, captions = (image_embeds, image_labels), (text_embeds, text_labels)
    return {
        "image_to_text": Queries(
            rank_counts(*images, *captions, image_query_mask),
            _selected(image_query_mask, num_images),
        ),
        "text_to_image": Queries(
            rank_counts(*captions, *images, text_query_mask),
            image_of_text[_selected(text_query_mask, num_texts)],
        ),
    }


def query_sizes(image_embeds, text_embeds, found: dict[str, Queries]) -> dict[str, int]:
    """Returns the numbers of images, texts and queries as fields of a row."""
    return {
        "num_images": len(image_embeds),
        "num_texts": len(text_embeds),
        "num_image_queries": len(found["image_to_text"].counts),
        "num_text_queries": len(found["text_to_image"].counts),
    }


def caption_labels(
    texts: Sequence[str], image_of_text: np.ndarray, num_images: int
) -> tuple[np.ndarray, np.ndarray]:
    """Assigns one label to each distinct text, so that equal captions are the same caption.

    Returns image labels int (N, P) and text labels int (T, 1). An image has the labels of its
    captions, padded with negative labels to P, the largest number of any image.
    """
    texts = text_list(texts, "texts", "a cat on a mat")
    if len(texts) != len(image_of_text):
        raise UserError(f"texts: {len(texts)} of them, but image_of_text has {len(image_of_text)}")
    number: dict[str, int] = {}
    text_labels = np.array([number.setdefault(text, len(number)) for text in texts], np.int32)
    labels_of_image: list[dict[int, None]] = [{} for _ in range(num_images)]
    for image, label in zip(image_of_text, text_labels, strict=True):
        labels_of_image[image][int(label)] = None
    width = max((len(labels) for labels in labels_of_image), default=0)
    image_labels = np.full((num_images, max(width, 1)), _NO_QUERY_LABEL, np.int32)
    for row, labels in zip(image_labels, labels_of_image, strict=True):
        row[: len(labels)] = list(labels)
    return image_labels, text_labels[:, None]


def recall_at_k(
    query_embeds,
    query_labels,
    gallery_embeds,
    gallery_labels,
    ks: Sequence[int] = DEFAULT_KS,
    query_mask=None,
) -> dict[int, float]:
    """Computes recall@k of (Q, D) queries in a (G, D) gallery by inner product: {k: share}.

    Args:
      query_labels, gallery_labels: int (Q,) or (Q, P), (G,) or (G, R); an item is a positive of a
        query if they share a label. Negative labels match nothing.
      query_mask: bool (Q,), the queries to count; None means all.

    Raises:
      UserError: see `retrieval_recalls`.
    """
    ks = check_ks(ks)
    counts = rank_counts(query_embeds, query_labels, gallery_embeds, gallery_labels, query_mask)
    return {k: float(hits_at_k(counts, k).mean()) for k in ks}


def rank_counts(
    query_embeds, query_labels, gallery_embeds, gallery_labels, query_mask=None
) -> np.ndarray:
    """Returns the counts int32 (Q, 3) of `hits_at_k`, one row a query that the mask selects.

    Arguments and errors are those of `recall_at_k`.
    """
    queries, gallery = _as_embeds("queries", query_embeds), _as_embeds("gallery", gallery_embeds)
    if queries.shape[1] != gallery.shape[1]:
        raise UserError(
            f"embeddings of {queries.shape[1]} and {gallery.shape[1]} dimensions cannot be compared"
        )
    query_labels = _as_labels(query_labels, len(queries), _NO_QUERY_LABEL)
    gallery_labels = _as_labels(gallery_labels, len(gallery), _NO_GALLERY_LABEL)
    selected = _selected(query_mask, len(queries))
    _check_positives(query_labels[selected], gallery_labels, selected)
    own_items = np.full(len(selected), _NO_ITEM)
    return _rank_counts(
        queries[selected], query_labels[selected], own_items, gallery, gallery_labels
    )


def image_to_image_queries(image_embeds, labels) -> Queries:
    """Returns what each image of (N, D) finds among the others, the positives being its class.

    Args:
      labels: int (N,), classes. An image whose class has no other is no query.

    Raises:
      UserError: embeddings that are not finite, labels that do not fit, no two images of one class.
    """
    embeds = _as_embeds("images", image_embeds)
    labels = as_labels(labels, len(embeds)).astype(np.int32)
    number, sizes = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    selected = np.flatnonzero(sizes[number] > 1)
    if not selected.size:
        raise UserError("labels: no two images have the same one; at least two of them must")
    column = labels[:, None]
    counts = _rank_counts(embeds[selected], column[selected], selected, embeds, column)
    return Queries(counts, selected)


def check_ks(ks: Iterable[int]) -> tuple[int, ...]:
    """Returns `ks` as a tuple. Raises `UserError` if one is not a whole number of at least 1."""
    accepted = "accepted are whole numbers >= 1, such as (1, 5, 10)"
    if isinstance(ks, str | bytes) or not isinstance(ks, Iterable):
        raise UserError(f"ks={shown(ks)}: {accepted}")
    found = tuple(ks)
    if not found:
        raise UserError(f"ks=(): {accepted}")
    return tuple(whole_number(k, f"ks={shown(found)}, number {i + 1}") for i, k in enumerate(found))


def _rank_counts(
    queries: np.ndarray,
    query_labels: np.ndarray,
    own_items: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    queries_per_block: int = QUERIES_PER_BLOCK,
    gallery_per_block: int = GALLERY_PER_BLOCK,
) -> np.ndarray:
    """Returns the int32 (Q, 3) counts of `hits_at_k`; splits queries over local devices.

    `own_items` int (Q,) is the gallery item that each query is itself and does not find.
    """
    devices = jax.local_devices()
    mesh = jax.make_mesh(
        (len(devices),), ("queries",), devices=devices, axis_types=(AxisType.Auto,)
    )
    gallery_block = min(gallery_per_block, len(gallery))
    query_block = len(devices) * min(queries_per_block, -(-len(queries) // len(devices)))
    replicated = NamedSharding(mesh, P())
    fixed = jax.device_put(
        (
            _blocks(gallery, gallery_block, 0.0),
            _blocks(gallery_labels, gallery_block, _NO_GALLERY_LABEL),
            _blocks(np.arange(len(gallery), dtype=np.int32), gallery_block, _NO_ITEM),
        ),
        replicated,
    )
    by_query = NamedSharding(mesh, P("queries"))
    special = _special_blocks(query_labels, gallery_labels, query_block, gallery_block)
    blocks = zip(
        _blocks(queries, query_block, 0.0),
        _blocks(query_labels, query_block, _NO_QUERY_LABEL),
        _blocks(own_items.astype(np.int32), query_block, _NO_ITEM),
        strict=True,
    )
    # All blocks are dispatched before the first result is read, so the host never waits in between.
    counts = [
        _count_block(*jax.device_put(block, by_query), *fixed, jax.device_put(row, replicated))
        for block, row in zip(blocks, special, strict=True)
    ]
    return np.concatenate([np.asarray(c) for c in counts])[: len(queries)]


def _special_blocks(
    query_labels: np.ndarray, gallery_labels: np.ndarray, query_block: int, gallery_block: int
) -> np.ndarray:
    """Returns bool (query blocks, gallery blocks): where a query has a positive, or padding is."""

    def labels_of(labels: np.ndarray, block: int, count: int) -> csr_array:
        rows = np.repeat(np.arange(len(labels)) // block, labels.shape[1])
        kept = labels.ravel() >= 0
        shape = (-(-len(labels) // block), count)
        return csr_array((np.ones(kept.sum()), (rows[kept], labels.ravel()[kept])), shape)

    count = int(max(query_labels.max(), gallery_labels.max())) + 1
    of_gallery = labels_of(gallery_labels, gallery_block, count)
    special = (labels_of(query_labels, query_block, count) @ of_gallery.T).toarray() > 0
    special[:, -1] |= len(gallery_labels) % gallery_block > 0
    return special


@jax.jit
def _count_block(
    queries_BxD, labels_BxP, own_B, gallery_NxGxD, labels_NxGxR, index_NxG, is_special_N
):
    """Counts one block of queries against all N blocks of the gallery: int32 (B, 3).

    The best positive's score comes first, from the blocks that have positives. Ties are counted by
    equality, and equal inputs give bitwise equal scores only if the same product computes them.
    """

    def product(gallery_GxD):
        # On CPUs, sums over the first axis take a third of the time of those over the last.
        return jnp.matmul(gallery_GxD, queries_BxD.T, precision=jax.lax.Precision.HIGHEST)

    def scores(block):
        gallery_GxD, labels_GxR, index_G, _ = block
        score_GxB = product(gallery_GxD)
        positive_GxB = jnp.zeros(score_GxB.shape, bool)
        for r in range(labels_GxR.shape[1]):
            for p in range(labels_BxP.shape[1]):
                positive_GxB |= labels_GxR[:, r, None] == labels_BxP[None, :, p]
        found_GxB = (index_G[:, None] != _NO_ITEM) & (index_G[:, None] != own_B)
        return jnp.where(found_GxB, score_GxB, -jnp.inf), positive_GxB

    def best_of_block(best_B, block):
        def among_positives():
            score, positive = scores(block)
            return jnp.maximum(best_B, jnp.where(positive, score, -jnp.inf).max(0))

        return jax.lax.cond(block[-1], among_positives, lambda: best_B), None

    def count_block(best_B, counts_3xB, block):
        """Adds a block's counts of better, tied negative and tied positive items."""

        def count_special():
            score, positive = scores(block)
            tied = score == best_B
            counts = [(score > best_B) & ~positive, tied & ~positive, tied & positive]
            return jnp.stack([c.sum(0, dtype=jnp.int32) for c in counts])

        def count_negatives():
            score = product(block[0])
            # One sum counts both, as a block is shorter than 1 << 16.
            both = (score > best_B).astype(jnp.int32) + (score == best_B) * (1 << 16)
            both_B = both.sum(0)
            return jnp.stack([both_B & 0xFFFF, both_B >> 16, jnp.zeros_like(both_B)])

        return counts_3xB + jax.lax.cond(block[-1], count_special, count_negatives), None

    gallery = (gallery_NxGxD, labels_NxGxR, index_NxG, is_special_N)
    num_queries = len(queries_BxD)
    best_B, _ = jax.lax.scan(best_of_block, jnp.full(num_queries, -jnp.inf), gallery)
    counts_3xB = jnp.zeros((3, num_queries), jnp.int32)
    return jax.lax.scan(partial(count_block, best_B), counts_3xB, gallery)[0].T


def _blocks(array: np.ndarray, block: int, fill) -> np.ndarray:
    """(N, ...) -> (ceil(N / block), block, ...), padded with `fill`."""
    padding = [(0, -len(array) % block)] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, padding, constant_values=fill).reshape(-1, block, *array.shape[1:])


def _as_embeds(name: str, embeds) -> np.ndarray:
    array = np.asarray(embeds, np.float32)
    if array.ndim != 2 or not array.size:
        raise UserError(f"{name}: embeddings of shape {array.shape}; accepted is (N, D), N > 0")
    # A NaN compares false with everything and would rank every positive first.
    if not np.isfinite(array).all():
        row = int(np.flatnonzero(~np.isfinite(array).all(1))[0])
        raise UserError(f"{name}: the embedding in row {row} is not finite")
    return array


def _as_labels(labels, length: int, fill: int) -> np.ndarray:
    array = np.asarray(labels)
    if len(array) != length or array.ndim not in (1, 2) or array.dtype.kind not in "iu":
        raise UserError(
            f"labels of shape {array.shape}, {array.dtype}: accepted are {length} rows of integers"
        )
    array = array.reshape(length, -1).astype(np.int32)
    return np.where(array < 0, fill, array)


def _selected(mask, length: int) -> np.ndarray:
    """Bool mask or None -> indices of the queries, int (Q,)."""
    if mask is None:
        return np.arange(length)
    mask = np.asarray(mask)
    if mask.shape != (length,) or mask.dtype != np.bool_:
        raise UserError(f"query mask {mask.dtype} {mask.shape}: accepted is bool ({length},)")
    if not mask.any():
        raise UserError(f"query mask: none of {length} queries is selected")
    return np.flatnonzero(mask)


def _check_positives(query_labels, gallery_labels, selected) -> None:
    missing = ~np.isin(query_labels, gallery_labels).any(1)
    if missing.any():
        raise UserError(
            f"{int(missing.sum())} of {len(selected)} queries have no positive in the gallery, the "
            f"first is query {int(selected[missing][0])}; mask them or complete the gallery"
        )


def _check_index(image_of_text: np.ndarray, num_images: int, num_texts: int) -> None:
    if image_of_text.shape != (num_texts,) or image_of_text.dtype.kind not in "iu":
        raise UserError(
            f"image_of_text {image_of_text.dtype} {image_of_text.shape}: accepted are integers "
            f"({num_texts},), one a text"
        )
    wrong = (image_of_text < 0) | (image_of_text >= num_images)
    if wrong.any():
        t = int(np.flatnonzero(wrong)[0])
        raise UserError(f"image_of_text[{t}]={image_of_text[t]}: accepted is 0 to {num_images - 1}")
