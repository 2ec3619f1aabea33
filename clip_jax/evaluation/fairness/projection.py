"""Projection of text embeddings that takes out what tells groups of people apart.

Source: Chuang et al. 2023, "Debiasing vision-language models via biased prompts", section 4.2. The
closed form P = P₀ (I + λ/|S| Σ (z_i − z_j)(z_i − z_j)ᵀ)⁻¹ first shrinks the differences of prompts
that should mean the same, such as "a male doctor" and "a female doctor", and then takes out the
attribute's own directions. λ = 1000 as in the authors' release. Their P₀ takes out the attribute's
prompts whole, together with what all prompts of people share; here it takes out their differences.
"""

from collections.abc import Callable, Sequence
from itertools import combinations

import numpy as np

from clip_jax.data.attribute_words import attribute_words
from clip_jax.errors import UserError

STRENGTH = 1000.0  # λ


def attribute_projection(
    directions: np.ndarray, pairs: np.ndarray, strength: float = STRENGTH
) -> np.ndarray:
    """Returns the calibrated projection, float64 (D, D), which multiplies embeddings as columns.

    Args:
      directions: (K, D), of which the span is taken out; they need not be independent.
      pairs: (S, 2, D), embeddings that should become equal; S may be 0.
      strength: λ, at least 0; with 0 the pairs play no role.
    """
    directions = np.asarray(directions, np.float64)
    _, sizes, basis = np.linalg.svd(directions, full_matrices=False)
    basis = basis[sizes > 1e-6 * max(sizes.max(initial=0.0), 1e-30)]
    width = directions.shape[1]
    differences = np.asarray(pairs, np.float64).reshape(-1, 2, width)
    differences = differences[:, 0] - differences[:, 1]
    spread = differences.T @ differences / max(1, len(differences))
    outside = np.eye(width) - basis.T @ basis
    return outside @ np.linalg.inv(np.eye(width) + strength * spread)


def projected(projection: np.ndarray, embeds: np.ndarray) -> np.ndarray:
    """Projects embeddings (N, D): float32 (N, D), rows of length 1.

    Raises UserError for one of which nothing is left: it says nothing but the attribute.
    """
    found = np.asarray(embeds, np.float64) @ projection.T
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    if not (norms > 1e-9).all():
        raise UserError(
            f"project_out: nothing is left of text {int(norms.argmin())}, which names the attribute"
        )
    return (found / norms).astype(np.float32)


def text_projection(
    embed_text: Callable[[list[str]], np.ndarray],
    attribute: str,
    names: Sequence[str],
    template: str,
) -> np.ndarray:
    """Returns the `attribute_projection` of a model for prompts about `names`.

    Directions are the differences of "a photo of a {group} person."; pairs are the prompts of each
    name for any two groups, such as "a photo of a male doctor." and "a photo of a female doctor.".

    Args:
      embed_text: list of n strings -> float32 (n, D), rows of length 1.
      attribute: what `attribute_words` takes; the words of its first line are the groups.
      names: classes or concepts.
      template: a prompt with "{}" for the name.
    """
    groups = attribute_words(attribute, "project_out")[0]
    plain = embed_text([f"a photo of a {group} person." for group in groups])
    texts = [template.replace("{}", f"{group} {name}") for name in names for group in groups]
    embeds = np.asarray(embed_text(texts), np.float64).reshape(len(names), len(groups), -1)
    both = list(combinations(range(len(groups)), 2))
    pairs = embeds[:, both].reshape(-1, 2, embeds.shape[-1])
    return attribute_projection(plain - plain.mean(0), pairs)
