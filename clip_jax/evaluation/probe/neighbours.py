"""k-NN by weighted votes, the protocol of DINO (Caron et al. 2021, section 4.1 and its code).

Of the k = 20 training images that are nearest by cosine, each votes for its class with the weight
exp(cosine / 0.07), from Wu et al. 2018 (Unsupervised Feature Learning via Non-Parametric Instance
Discrimination, section 3.4).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.evaluation.probe.sweep import Examples

NEIGHBOURS = 20
TEMPERATURE = 0.07
GALLERY_BLOCK = 1 << 14  # training images whose cosines are held at once


class NearestNeighbours:
    """Classifier of unit rows by those of training images, which are on each local device."""

    def __init__(self, train: Examples, num_classes: int) -> None:
        """Takes rows of length 1; there may be fewer than `NEIGHBOURS`."""
        self._labels, self._num_classes = train.labels, num_classes
        devices = jax.local_devices()
        mesh = jax.make_mesh(
            (len(devices),), ("rows",), devices=devices, axis_types=(AxisType.Auto,)
        )
        self._by_row = NamedSharding(mesh, P("rows"))
        count, width = train.features.shape
        block = min(GALLERY_BLOCK, count)
        blocks = np.zeros((-(-count // block) * block, width), np.float32)
        blocks[:count] = train.features
        self._gallery = jax.device_put(blocks.reshape(-1, block, width), NamedSharding(mesh, P()))

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Returns the logarithm of the votes for each class, float64 (N, C).

        Every class has the vote of one more image, at cosine −1, so that none has no vote.
        """
        cosines, rows = self.nearest(features)
        votes = np.full((len(features), self._num_classes), np.exp(-1 / TEMPERATURE))
        of_query = np.arange(len(features))[:, None]
        np.add.at(votes, (of_query, self._labels[rows]), np.exp(cosines / TEMPERATURE))
        return np.log(votes)

    def nearest(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the largest cosines, float64 (N, k), and the rows of their training images."""
        count = len(features)
        unused = -count % self._by_row.mesh.size
        queries = jax.device_put(np.pad(features, ((0, unused), (0, 0))), self._by_row)
        k, total = min(NEIGHBOURS, len(self._labels)), len(self._labels)
        cosines, rows = _nearest(queries, self._gallery, total, k)
        return np.asarray(cosines, np.float64)[:count], np.asarray(rows)[:count]


@functools.partial(jax.jit, static_argnames="k")
def _nearest(
    queries_QD: jax.Array, gallery_NGD: jax.Array, total: int, k: int
) -> tuple[jax.Array, jax.Array]:
    """Returns scores float32 (Q, k) and rows int32 (Q, k) of the best; only `total` rows exist."""
    blocks, block, _ = gallery_NGD.shape

    def add_block(best: tuple[jax.Array, jax.Array], part: tuple[jax.Array, jax.Array]):
        number, gallery_GD = part
        rows_G = number * block + jnp.arange(block)
        scores_QG = jnp.matmul(queries_QD, gallery_GD.T, precision=jax.lax.Precision.HIGHEST)
        scores_QG = jnp.where(rows_G < total, scores_QG, -jnp.inf)
        scores = jnp.concatenate([best[0], scores_QG], axis=1)
        rows = jnp.concatenate([best[1], jnp.broadcast_to(rows_G, scores_QG.shape)], axis=1)
        scores_Qk, places_Qk = jax.lax.top_k(scores, k)
        return (scores_Qk, jnp.take_along_axis(rows, places_Qk, axis=1)), None

    shape = (len(queries_QD), k)
    first = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    return jax.lax.scan(add_block, first, (jnp.arange(blocks), gallery_NGD))[0]
