"""The `dense` and `chunked` implementations: every part sees the texts of all parts, in chunks.

A part keeps its images and gathers the texts in chunks of G = parts·C, so that no device ever
holds them all. The two differ only in the logits of the softmax loss, which `dense` keeps for the
gradient and `chunked` recomputes.
"""

import jax
import jax.numpy as jnp
from jax import lax

from clip_jax.losses.blocks import (
    Chunks,
    LogSumExp,
    Result,
    SigmoidSums,
    block_logits,
    join,
    pair_numbers,
    softmax_block,
    softmax_result,
)
from clip_jax.losses.split import Split

Array = jax.Array


def softmax(
    split: Split,
    images_RD: Array,
    texts_RD: Array,
    scale: Array,
    *,
    columns: int,
    keep_logits: bool,
) -> Result:
    """Computes the symmetric cross-entropy; a chunk has at most `columns` texts over all parts."""
    rows = len(images_RD)
    images_RD = images_RD.astype(jnp.float32)
    chunks = _chunks(split, texts_RD, columns)

    def forward(row: LogSumExp, chunk: Chunks) -> tuple[LogSumExp, tuple[LogSumExp, Array | None]]:
        texts_GD, numbers_G = _gather(split, chunk, rows)
        logits_RG = block_logits(images_RD, texts_GD, numbers_G, scale)
        column = split.varying(LogSumExp.empty(len(numbers_G))).add(logits_RG, 0)
        return row.add(logits_RG, 1), (column, logits_RG if keep_logits else None)

    row, (column, logits_KRG) = lax.scan(forward, split.varying(LogSumExp.empty(rows)), chunks)
    column = column.over_parts(split)

    def backward(
        dimages_RD: Array, inputs: tuple[Chunks, LogSumExp, Array | None]
    ) -> tuple[Array, Array]:
        chunk, column, logits_RG = inputs
        texts_GD, numbers_G = _gather(split, chunk, rows)
        if logits_RG is None:
            logits_RG = block_logits(images_RD, texts_GD, numbers_G, scale)
        dimages_RD, dtexts_GD = softmax_block(
            dimages_RD, images_RD, texts_GD, logits_RG, (row, column)
        )
        return dimages_RD, split.sum_scatter(dtexts_GD)

    dimages_RD, dtexts_KCD = lax.scan(
        backward, split.varying(jnp.zeros(images_RD.shape)), (chunks, column, logits_KRG)
    )
    own_column = LogSumExp(*(join(_own(split, x_KG), rows) for x_KG in column))
    return softmax_result(
        split,
        (images_RD, texts_RD.astype(jnp.float32), scale),
        (row, own_column),
        (dimages_RD, join(dtexts_KCD, rows)),
    )


def sigmoid(
    split: Split, images_RD: Array, texts_RD: Array, scale: Array, bias: Array, *, columns: int
) -> Result:
    """Computes the pairwise loss; a chunk has at most `columns` texts over all parts."""
    rows = len(images_RD)
    images_RD = images_RD.astype(jnp.float32)
    row_numbers_R1 = pair_numbers(jnp.arange(rows), split.index(), rows)[:, None]

    def add(sums: SigmoidSums, chunk: Chunks) -> tuple[SigmoidSums, Array]:
        texts_GD, numbers_G = _gather(split, chunk, rows)
        logits_RG = block_logits(images_RD, texts_GD, numbers_G, scale, bias)
        sums, dtexts_GD = sums.add(images_RD, texts_GD, logits_RG, row_numbers_R1 == numbers_G)
        return sums, split.sum_scatter(dtexts_GD)

    sums, dtexts_KCD = lax.scan(
        add, split.varying(SigmoidSums.zero(images_RD)), _chunks(split, texts_RD, columns)
    )
    return sums.result(split, images_RD, scale, join(dtexts_KCD, rows))


def _chunks(split: Split, texts_RD: Array, columns: int) -> Chunks:
    return Chunks.split(texts_RD, max(1, columns // split.shards))


def _gather(split: Split, chunk: Chunks, rows: int) -> tuple[Array, Array]:
    """Gathers a chunk of every part: texts (G, D) float32 and their pair numbers (G,)."""
    texts_GD = split.gather(chunk.texts_KCD).astype(jnp.float32)
    return texts_GD, pair_numbers(chunk.numbers_KC, jnp.arange(split.shards), rows)


def _own(split: Split, x_KG: Array) -> Array:
    """(K, G) for the gathered texts -> (K, C) for this part's own."""
    x_KPC = x_KG.reshape(len(x_KG), split.shards, -1)
    return lax.dynamic_index_in_dim(x_KPC, split.index(), axis=1, keepdims=False)
