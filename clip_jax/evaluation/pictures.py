"""Pictures and captions of a source that a page shows of a row of results."""

from collections.abc import Mapping

import numpy as np

from clip_jax.data.records import Source
from clip_jax.errors import DecodeError

SHOWN = 8  # pictures of mistakes, of the worst queries, and of those on which two models disagree
PICTURE = 144  # pixels of a picture's longer side
RANKS = "text_to_image_ranks"


def with_pictures(samples: dict[str, np.ndarray], source: Source | None) -> dict[str, np.ndarray]:
    """Adds pictures of the surest mistakes and of the queries that ended worst."""
    if source is None or "records" not in samples:
        return samples
    if "predictions" in samples:
        wrong = np.flatnonzero(samples["predictions"] != samples["labels"])
        worst = wrong[np.argsort(-samples["confidence"][wrong], kind="stable")][:SHOWN]
        pictures = thumbnails(source, samples["records"][worst])
        return {**samples, "mistakes": worst, "mistake_pictures": pictures}
    if has_queries(samples):
        worst = np.argsort(-samples[RANKS], kind="stable")[:SHOWN]
        return {
            **samples,
            "worst_texts": np.asarray(query_texts(source, samples, worst)),
            "worst_ranks": samples[RANKS][worst],
            "worst_pictures": thumbnails(source, query_records(samples, worst)),
        }
    return samples


def has_queries(samples: Mapping[str, np.ndarray]) -> bool:
    """Whether a row's arrays have the rank of every caption's picture."""
    ranks, images = samples.get(RANKS), samples.get("image_of_text")
    return ranks is not None and images is not None and len(ranks) == len(images)


def query_records(samples: Mapping[str, np.ndarray], queries: np.ndarray) -> np.ndarray:
    """Returns the records of the pictures of captions, int (Q,)."""
    return np.asarray(samples["records"][samples["image_of_text"][queries]])


def query_texts(
    source: Source, samples: Mapping[str, np.ndarray], queries: np.ndarray
) -> list[str]:
    """Returns the captions of a retrieval's rows that have the numbers `queries`, int (Q,)."""
    images = samples["image_of_text"][queries]
    first = np.searchsorted(samples["image_of_text"], images)
    places = zip(samples["records"][images], queries - first, strict=True)
    return [source.captions(int(record))[place] for record, place in places]


def thumbnails(source: Source, records: np.ndarray) -> np.ndarray:
    """Returns small pictures of records, uint8 (N, PICTURE, PICTURE, 3), on white."""
    from PIL import Image

    from clip_jax.images.decoding import decode

    canvases = np.full((len(records), PICTURE, PICTURE, 3), 255, np.uint8)
    for canvas, record in zip(canvases, records, strict=True):
        try:
            image = decode(source[int(record)].image).convert("RGB")
        except DecodeError:
            continue
        image.thumbnail((PICTURE, PICTURE), Image.Resampling.LANCZOS)
        top, left = (PICTURE - image.height) // 2, (PICTURE - image.width) // 2
        canvas[top : top + image.height, left : left + image.width] = np.asarray(image)
    return canvases
