"""The implementations of the losses, of one part of the batch each.

`dense` and `chunked` are gathered: every part sees the texts of all parts, in chunks. A part keeps
its images and gathers the texts in chunks of G = parts·C, so that no device ever holds them all.
The two differ only in the logits of the softmax loss, which `dense` keeps for the gradient and
`chunked` recomputes.

In the `ring`, texts travel from part to part until they have seen all images. In step s a part
holds the texts of the part s places before it. An image's log-sum-exp and gradient stay with it; a
text's travel with the text. After as many steps as there are parts, all are complete and back home,
and no part ever held the texts of two others. Within a part the texts are processed in chunks; the
softmax gradient recomputes the blocks of logits.
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
    pair_weights,
    softmax_block,
    softmax_result,
)
from clip_jax.losses.split import Split

Array = jax.Array


def gathered_softmax(
    split: Split,
    images_RD: Array,
    texts_RD: Array,
    weights_R: Array | None,
    scale: Array,
    *,
    columns: int,
    keep_logits: bool,
) -> Result:
    """Computes the symmetric cross-entropy; a chunk has at most `columns` texts over all parts."""
    rows = len(images_RD)
    images_RD = images_RD.astype(jnp.float32)
    chunks = _gathered_chunks(split, texts_RD, columns)

    def forward(row: LogSumExp, chunk: Chunks) -> tuple[LogSumExp, tuple[LogSumExp, Array | None]]:
        texts_GD, numbers_G = _gather(split, chunk, rows)
        logits_RG = block_logits(images_RD, texts_GD, numbers_G, scale)
        column = split.varying(LogSumExp.empty(len(numbers_G))).add(logits_RG, 0)
        return row.add(logits_RG, 1), (column, logits_RG if keep_logits else None)

    row, (column, logits_KRG) = lax.scan(forward, split.varying(LogSumExp.empty(rows)), chunks)
    column = column.over_parts(split)
    weights_B = _gather_weights(split, weights_R)
    weighted_row = row.weighted(weights_R)

    def backward(
        dimages_RD: Array, inputs: tuple[Chunks, LogSumExp, Array | None]
    ) -> tuple[Array, Array]:
        chunk, column, logits_RG = inputs
        texts_GD, numbers_G = _gather(split, chunk, rows)
        if logits_RG is None:
            logits_RG = block_logits(images_RD, texts_GD, numbers_G, scale)
        column = column.weighted(_take(weights_B, numbers_G))
        dimages_RD, dtexts_GD = softmax_block(
            dimages_RD, images_RD, texts_GD, logits_RG, (weighted_row, column)
        )
        return dimages_RD, split.sum_scatter(dtexts_GD)

    dimages_RD, dtexts_KCD = lax.scan(
        backward, split.varying(jnp.zeros(images_RD.shape)), (chunks, column, logits_KRG)
    )
    own_column = LogSumExp(*(join(_own(split, x_KG), rows) for x_KG in column))
    return softmax_result(
        split,
        (images_RD, texts_RD.astype(jnp.float32), weights_R, scale),
        (row, own_column),
        (dimages_RD, join(dtexts_KCD, rows)),
    )


def gathered_sigmoid(
    split: Split,
    images_RD: Array,
    texts_RD: Array,
    weights_R: Array | None,
    scale: Array,
    bias: Array,
    *,
    columns: int,
) -> Result:
    """Computes the pairwise loss; a chunk has at most `columns` texts over all parts."""
    rows = len(images_RD)
    images_RD = images_RD.astype(jnp.float32)
    row_numbers_R1 = pair_numbers(jnp.arange(rows), split.index(), rows)[:, None]
    weights_B = _gather_weights(split, weights_R)

    def add(sums: SigmoidSums, chunk: Chunks) -> tuple[SigmoidSums, Array]:
        texts_GD, numbers_G = _gather(split, chunk, rows)
        logits_RG = block_logits(images_RD, texts_GD, numbers_G, scale, bias)
        weights_RG = pair_weights(weights_R, _take(weights_B, numbers_G))
        sums, dtexts_GD = sums.add(
            images_RD, texts_GD, logits_RG, row_numbers_R1 == numbers_G, weights_RG
        )
        return sums, split.sum_scatter(dtexts_GD)

    sums, dtexts_KCD = lax.scan(
        add, split.varying(SigmoidSums.zero(images_RD)), _gathered_chunks(split, texts_RD, columns)
    )
    return sums.result(split, images_RD, weights_R, scale, join(dtexts_KCD, rows))


def _gathered_chunks(split: Split, texts_RD: Array, columns: int) -> Chunks:
    return Chunks.split(texts_RD, max(1, columns // split.shards))


def _gather(split: Split, chunk: Chunks, rows: int) -> tuple[Array, Array]:
    """Gathers a chunk of every part: texts (G, D) float32 and their pair numbers (G,)."""
    texts_GD = split.gather(chunk.texts_KCD).astype(jnp.float32)
    return texts_GD, pair_numbers(chunk.numbers_KC, jnp.arange(split.shards), rows)


def _gather_weights(split: Split, weights_R: Array | None) -> Array | None:
    """(R,) of each part -> (B,) of all pairs, of which every part has room for one number each."""
    return None if weights_R is None else split.gather(weights_R)


def _take(weights: Array | None, numbers: Array) -> Array | None:
    """Returns the weights of these pairs; padding gets any, as its logits count for nothing."""
    return None if weights is None else weights[numbers]


def _own(split: Split, x_KG: Array) -> Array:
    """(K, G) for the gathered texts -> (K, C) for this part's own."""
    x_KPC = x_KG.reshape(len(x_KG), split.shards, -1)
    return lax.dynamic_index_in_dim(x_KPC, split.index(), axis=1, keepdims=False)


def ring_softmax(
    split: Split,
    images_RD: Array,
    texts_RD: Array,
    weights_R: Array | None,
    scale: Array,
    *,
    columns: int,
) -> Result:
    """Computes the symmetric cross-entropy; blocks have at most `columns` columns."""
    rows = len(images_RD)
    images_RD = images_RD.astype(jnp.float32)
    texts_KCD, numbers_KC = Chunks.split(texts_RD, columns)

    Forward = tuple[LogSumExp, LogSumExp, Array]  # of rows, of columns, texts
    Backward = tuple[Array, Array, Array, LogSumExp]  # dimages, dtexts, texts, of columns

    def forward_block(
        row: LogSumExp, inputs: tuple[Array, Array, LogSumExp]
    ) -> tuple[LogSumExp, LogSumExp]:
        texts_CD, numbers_C, column = inputs
        logits_RC = block_logits(images_RD, texts_CD.astype(jnp.float32), numbers_C, scale)
        return row.add(logits_RC, 1), column.add(logits_RC, 0)

    def forward(carry: Forward, _: None) -> tuple[Forward, None]:
        row, column, texts_KCD = carry
        row, column = lax.scan(forward_block, row, (texts_KCD, numbers_KC, column))
        return (row, *split.send_on((column, texts_KCD))), None

    empty = split.varying((LogSumExp.empty(rows), LogSumExp.empty(*numbers_KC.shape)))
    (row, column, _), _ = lax.scan(forward, (*empty, texts_KCD), length=split.shards)
    weighted_row = row.weighted(weights_R)
    weighted_column = column.weighted(_take(weights_R, numbers_KC))

    def backward_block(
        dimages_RD: Array, inputs: tuple[Array, Array, LogSumExp]
    ) -> tuple[Array, Array]:
        texts_CD, numbers_C, column = inputs
        texts_CD = texts_CD.astype(jnp.float32)
        logits_RC = block_logits(images_RD, texts_CD, numbers_C, scale)
        return softmax_block(dimages_RD, images_RD, texts_CD, logits_RC, (weighted_row, column))

    def backward(carry: Backward, _: None) -> tuple[Backward, None]:
        dimages_RD, dtexts_KCD, texts_KCD, column = carry
        inputs = (texts_KCD, numbers_KC, column)
        dimages_RD, addend_KCD = lax.scan(backward_block, dimages_RD, inputs)
        dtexts_KCD = _add_on_arrival(split, dtexts_KCD, addend_KCD)
        return (dimages_RD, dtexts_KCD, *split.send_on((texts_KCD, column))), None

    zeros = split.varying((jnp.zeros(images_RD.shape), jnp.zeros(texts_KCD.shape)))
    (dimages_RD, dtexts_KCD, _, _), _ = lax.scan(
        backward, (*zeros, texts_KCD, weighted_column), length=split.shards
    )
    return softmax_result(
        split,
        (images_RD, texts_RD.astype(jnp.float32), weights_R, scale),
        (row, LogSumExp(*(join(x_KC, rows) for x_KC in column))),
        (dimages_RD, join(split.send_on(dtexts_KCD), rows)),
    )


def ring_sigmoid(
    split: Split,
    images_RD: Array,
    texts_RD: Array,
    weights_R: Array | None,
    scale: Array,
    bias: Array,
    *,
    columns: int,
) -> Result:
    """Computes the pairwise loss; blocks have at most `columns` columns."""
    rows = len(images_RD)
    images_RD = images_RD.astype(jnp.float32)
    texts_KCD, numbers_KC = Chunks.split(texts_RD, columns)
    row_numbers_R1 = pair_numbers(jnp.arange(rows), split.index(), rows)[:, None]
    weights_B = _gather_weights(split, weights_R)

    Travel = tuple[SigmoidSums, Array, Array]  # sums, dtexts, texts

    def step(carry: Travel, places: Array) -> tuple[Travel, None]:
        sums, dtexts_KCD, texts_KCD = carry
        part = (split.index() - places) % split.shards

        def add(sums: SigmoidSums, chunk: Chunks) -> tuple[SigmoidSums, Array]:
            texts_CD = chunk.texts_KCD.astype(jnp.float32)
            numbers_C = pair_numbers(chunk.numbers_KC, part, rows)
            logits_RC = block_logits(images_RD, texts_CD, numbers_C, scale, bias)
            weights_RC = pair_weights(weights_R, _take(weights_B, numbers_C))
            is_positive_RC = row_numbers_R1 == numbers_C
            return sums.add(images_RD, texts_CD, logits_RC, is_positive_RC, weights_RC)

        sums, addend_KCD = lax.scan(add, sums, Chunks(texts_KCD, numbers_KC))
        dtexts_KCD = _add_on_arrival(split, dtexts_KCD, addend_KCD)
        return (sums, dtexts_KCD, split.send_on(texts_KCD)), None

    zeros = split.varying((SigmoidSums.zero(images_RD), jnp.zeros(texts_KCD.shape)))
    (sums, dtexts_KCD, _), _ = lax.scan(step, (*zeros, texts_KCD), jnp.arange(split.shards))
    return sums.result(split, images_RD, weights_R, scale, join(split.send_on(dtexts_KCD), rows))


def _add_on_arrival(split: Split, dtexts_KCD: Array, addend_KCD: Array) -> Array:
    """Returns the gradient of the texts that this part holds now.

    The gradient follows one step behind its texts, so that it can travel while the addend is
    computed; after the last step it is one place short of home.
    """
    return split.send_on(dtexts_KCD) + addend_KCD
