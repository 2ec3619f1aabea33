"""Operations on one block of the similarity matrix, shared by all implementations.

Gradients are written by hand: automatic ones keep more than they need, and the sigmoid loss can
compute its gradient from a block together with its value.

Shape letters: R rows (the images of one part), C columns (the texts of a chunk), D width, K chunks.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from clip_jax.losses.split import Split

Array = jax.Array
Result = tuple[Array, tuple[Array | None, ...]]  # the value, and its gradient by each argument

LOWEST = -1e30  # not −inf, whose difference with itself is not 0
PADDING = -1  # number of a padding column


def matmul(a: Array, b: Array) -> Array:
    """Multiplies in full float32, even if the platform's default is coarser (TPU, GPU)."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def pair_weights(weights_R: Array | None, weights_C: Array | None) -> Array | None:
    """Returns (R, C), the mean of the weights of row and column; None without weights."""
    if weights_R is None or weights_C is None:
        return None
    return 0.5 * (weights_R[:, None] + weights_C)


class Chunks(NamedTuple):
    """One part's texts in chunks of equal size, the last one padded with zeros."""

    texts_KCD: Array
    numbers_KC: Array  # int32: the row of the part, or PADDING

    @staticmethod
    def split(texts_RD: Array, columns: int) -> Chunks:
        """(R, D) -> chunks of at most `columns` texts, as even as they can be."""
        rows, width = texts_RD.shape
        count = -(-rows // columns)
        columns = -(-rows // count)
        padded = jnp.pad(texts_RD, ((0, count * columns - rows), (0, 0)))
        numbers = jnp.arange(count * columns)
        numbers = jnp.where(numbers < rows, numbers, PADDING)
        return Chunks(padded.reshape(count, columns, width), numbers.reshape(count, columns))


def join(x_KC: Array, rows: int) -> Array:
    """(K, C, …) -> (R, …): concatenates the chunks of a part, without padding."""
    return x_KC.reshape(-1, *x_KC.shape[2:])[:rows]


def pair_numbers(numbers_C: Array, part: Array | int, rows: int) -> Array:
    """(C,) rows of a part, () or (P,) part indices -> (C,) or (P·C,) global pair numbers."""
    first_P1 = jnp.atleast_1d(part)[:, None] * rows
    return jnp.where(numbers_C == PADDING, PADDING, first_P1 + numbers_C).ravel()


def block_logits(
    images_RD: Array, texts_CD: Array, numbers_C: Array, scale: Array, bias: Array | float = 0.0
) -> Array:
    """Returns (R, C) logits: scale·product + bias, and LOWEST for padding."""
    logits_RC = matmul(images_RD, (scale * texts_CD).T) + bias
    return jnp.where(numbers_C == PADDING, LOWEST, logits_RC)


class LogSumExp(NamedTuple):
    """Running log-sum-exp: largest + log(total).

    Two numbers, because one float32 near 100 is too coarse to add many small blocks to, and a
    row's whole gradient would share its rounding error.
    """

    largest: Array
    total: Array

    @staticmethod
    def empty(*shape: int) -> LogSumExp:
        """Returns the log-sum-exp of no logits."""
        return LogSumExp(jnp.full(shape, LOWEST), jnp.zeros(shape))

    def add(self, logits_RC: Array, axis: int) -> LogSumExp:
        """Adds a block of logits, reduced over one of its axes."""
        largest = jnp.maximum(self.largest, logits_RC.max(axis))
        exponentials_RC = jnp.exp(logits_RC - jnp.expand_dims(largest, axis))
        total = self.total * jnp.exp(self.largest - largest) + exponentials_RC.sum(axis)
        return LogSumExp(largest, total)

    def over_parts(self, split: Split) -> LogSumExp:
        """Combines the log-sum-exps of all parts."""
        largest = split.max(self.largest)
        return LogSumExp(largest, split.sum(self.total * jnp.exp(self.largest - largest)))

    def weighted(self, weights: Array | None) -> LogSumExp:
        """Returns what makes `softmax` return weight·softmax, for a weight a log-sum-exp."""
        return self if weights is None else LogSumExp(self.largest, self.total / weights)

    def above(self, logit: Array) -> Array:
        """Returns the log-sum-exp minus one of its logits: −log softmax."""
        return (self.largest - logit) + jnp.log(self.total)

    def softmax(self, logits_RC: Array, axis: int) -> Array:
        """Returns a block's softmax over one axis; every block must have been added before."""
        largest, total = (jnp.expand_dims(x, axis) for x in self)
        return jnp.exp(logits_RC - largest) * (1 / total)  # one division per row, not per element


def softmax_block(
    dimages_RD: Array,
    images_RD: Array,
    texts_CD: Array,
    logits_RC: Array,
    logsumexps: tuple[LogSumExp, LogSumExp],
) -> tuple[Array, Array]:
    """Computes a block's part of the gradient from the complete log-sum-exps of rows and columns.

    Returns dimages plus the product of the block's dloss/dlogit and the texts, and the product of
    its transpose and the images (C, D).
    """
    row, column = logsumexps
    weights_RC = 0.5 * (row.softmax(logits_RC, 1) + column.softmax(logits_RC, 0))
    return dimages_RD + matmul(weights_RC, texts_CD), matmul(weights_RC.T, images_RD)


def softmax_result(
    split: Split,
    arguments: tuple[Array, Array, Array | None, Array],
    logsumexps: tuple[LogSumExp, LogSumExp],
    products: tuple[Array, Array],
) -> Result:
    """Returns the loss over all parts; this part's images and texts must have met all others.

    `arguments`: images and texts (R, D), weights (R,) or None, scale. `logsumexps`: (R,) for the
    images' rows and the texts' columns. `products`: gradients without the positives, as
    `softmax_block` sums them.
    """
    images_RD, texts_RD, weights_R, scale = arguments
    positive_R = scale * jnp.sum(images_RD * texts_RD, axis=1)
    row, column = logsumexps
    value_R = 0.5 * (row.above(positive_R) + column.above(positive_R))
    positives = (texts_RD, images_RD)
    if weights_R is not None:
        value_R = weights_R * value_R
        positives = (weights_R[:, None] * texts_RD, weights_R[:, None] * images_RD)
    products = (products[0] - positives[0], products[1] - positives[1])
    return _mean(split, images_RD, weights_R, scale, value_R, products)


class SigmoidSums(NamedTuple):
    """Sums of one part over blocks."""

    value_R: Array
    dimages_RD: Array  # dloss/dlogit with the texts
    dbias_R: Array

    @staticmethod
    def zero(images_RD: Array) -> SigmoidSums:
        """Returns the sums of no blocks."""
        zero_R = jnp.zeros(len(images_RD))
        return SigmoidSums(zero_R, jnp.zeros(images_RD.shape), zero_R)

    def add(
        self,
        images_RD: Array,
        texts_CD: Array,
        logits_RC: Array,
        positive_RC: Array,
        weights_RC: Array | None,
    ) -> tuple[SigmoidSums, Array]:
        """Adds a block's −log sigmoid(±logit), times the pairs' weights if they have some; also
        returns (dloss/dlogit)ᵀ·images (C, D)."""
        sign_RC = jnp.where(positive_RC, -1.0, 1.0)
        value_RC = jax.nn.softplus(sign_RC * logits_RC)
        dlogits_RC = sign_RC * jax.nn.sigmoid(sign_RC * logits_RC)
        if weights_RC is not None:
            value_RC, dlogits_RC = weights_RC * value_RC, weights_RC * dlogits_RC
        value_R = self.value_R + value_RC.sum(1)
        dimages_RD = self.dimages_RD + matmul(dlogits_RC, texts_CD)
        sums = SigmoidSums(value_R, dimages_RD, self.dbias_R + dlogits_RC.sum(1))
        return sums, matmul(dlogits_RC.T, images_RD)

    def result(
        self,
        split: Split,
        images_RD: Array,
        weights_R: Array | None,
        scale: Array,
        dtexts_RD: Array,
    ) -> Result:
        """Returns the loss over all parts; this part's rows must have met all others."""
        products = (self.dimages_RD, dtexts_RD)
        value, gradients = _mean(split, images_RD, weights_R, scale, self.value_R, products)
        dbias = split.sum(self.dbias_R.sum()) * _share(split, images_RD, weights_R)
        return value, (*gradients, dbias)


def _mean(
    split: Split,
    images_RD: Array,
    weights_R: Array | None,
    scale: Array,
    value_R: Array,
    products: tuple[Array, Array],
) -> Result:
    """Returns the mean over all parts' pairs, and its gradient by images, texts, weights and scale.

    `products` (R, D): dloss/dlogit times all texts, and its transpose times all images. Weights
    are data: their gradient is 0.
    """
    share = _share(split, images_RD, weights_R)
    dscale = split.sum(jnp.sum(images_RD * products[0])) * share
    factor = scale * share
    dweights_R = None if weights_R is None else 0 * weights_R
    gradients = (factor * products[0], factor * products[1], dweights_R, dscale)
    return split.sum(value_R.sum()) * share, gradients


def _share(split: Split, images_RD: Array, weights_R: Array | None) -> Array | float:
    """Returns 1 over the sum of the weights of all parts' pairs, by default 1 each."""
    # The compiler divides by a constant in this way; so weights of 1 give the same bits.
    if weights_R is None:
        return 1 / (len(images_RD) * split.shards)
    total = split.sum(weights_R.sum())
    return jnp.where(total > 0, 1 / total, 0.0)  # a batch without weight teaches nothing
