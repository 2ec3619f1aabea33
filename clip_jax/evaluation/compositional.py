"""Compositional problems: the right caption among wrong ones, for one image or several.

Protocols: SugarCrepe (Hsieh et al. 2023; an image, a right and a wrong caption) and Winoground
(Thrush et al. 2022; two images and two captions, image i belongs to caption i).
"""

import numpy as np

from clip_jax.errors import UserError


def match_hits(scores: np.ndarray) -> dict[str, np.ndarray]:
    """Scores N problems of I images and C captions, of which image i belongs to caption i.

    Args:
      scores: float (N, I, C), similarities.

    Returns:
      float64 (N,) each, in [0, 1]: `text_accuracy` is 1 if each image's best caption is its own,
      `image_accuracy` if each caption's best image is its own (of the first min(I, C) of both),
      `accuracy` if both hold. Ties count with the probability that a random order breaks them
      rightly.

    Raises:
      UserError: another shape, or a score that is not finite.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 3 or not scores.size:
        raise UserError(f"scores of shape {scores.shape}; accepted is (N, images, captions)")
    if not np.isfinite(scores).all():
        problem = int(np.flatnonzero(~np.isfinite(scores).all((1, 2)))[0])
        raise UserError(f"scores: those of problem {problem} are not finite")
    text, image = _own_is_best(scores), _own_is_best(scores.transpose(0, 2, 1))
    return {"text_accuracy": text, "image_accuracy": image, "accuracy": text * image}


def _own_is_best(scores_NxQxG: np.ndarray) -> np.ndarray:
    """Returns float64 (N,): the probability that each query q has item q of the gallery on top."""
    queries = np.arange(min(scores_NxQxG.shape[1:]))
    scores = scores_NxQxG[:, queries]
    own = scores[:, queries, queries][..., None]
    tied = (scores == own).sum(-1)
    return np.where((scores > own).any(-1), 0.0, 1.0 / tied).prod(-1)


def pair_scores(image_embeds, text_embeds, image_of_pair) -> np.ndarray:
    """Returns float32 (N, 1, 2): similarities of N images with a right and a wrong caption.

    Args:
      image_embeds: float (M, D), L2-normalised.
      text_embeds: float (2 N, D), L2-normalised: the right and the wrong caption of each pair.
      image_of_pair: int (N,), the image that a pair of captions is about.
    """
    texts_Nx2xD = np.asarray(text_embeds).reshape(len(image_of_pair), 2, -1)
    return np.einsum("nd,ntd->nt", np.asarray(image_embeds)[image_of_pair], texts_Nx2xD)[:, None]
