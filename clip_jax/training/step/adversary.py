"""An adversary: a classifier that learns to tell groups of people from the image embeddings, while
the towers learn to mislead it.

Domain-adversarial training, Ganin et al. 2016, section 4: between towers and classifier the
gradient changes its sign, with a factor.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

ADVERSARY = "adversary"  # the classifier's parameters, beside those of the model in a gradient
ADVERSARY_LOSS = "adversary_loss"
GROUPS = "groups"  # (B,) int32 of a batch whose images have groups
_OPTIMIZER = optax.adam(1e-3)


class Adversary(NamedTuple):
    """State of the classifier: an MLP with one hidden layer as wide as the embeddings."""

    params: dict[str, jax.Array]  # hidden (D, D), hidden_bias (D,), out (D, G), out_bias (G,)
    opt_state: Any  # of Adam with the rate 1e-3


def start_adversary(width: int, groups: int, seed: int) -> Adversary:
    """Makes a classifier of G groups for embeddings of width D; pure."""
    keys = jax.random.split(jax.random.key(seed))
    params = {
        "hidden": np.sqrt(2 / width) * jax.random.normal(keys[0], (width, width)),
        "hidden_bias": jnp.zeros(width),
        "out": jax.random.normal(keys[1], (width, groups)) / width,
        "out_bias": jnp.zeros(groups),
    }
    return Adversary(params, _OPTIMIZER.init(params))


def replicated_adversary(mesh: Mesh, width: int, groups: int, seed: int) -> Adversary:
    """Makes the classifier on all devices of a mesh."""
    place = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda: start_adversary(width, groups, seed), out_shardings=place)()


def abstract_adversary(mesh: Mesh, width: int, groups: int) -> Adversary:
    """Shapes, dtypes and shardings of `replicated_adversary`."""
    place = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(lambda: start_adversary(width, groups, 0))
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place), shapes)


def adversary_loss(
    params: dict[str, jax.Array], embeds_BD: jax.Array, groups_B: jax.Array, weight: float
) -> jax.Array:
    """Returns the classifier's mean cross-entropy, (); the embeddings get -weight × its gradient.

    `embeds_BD` have length 1; √D brings their entries to the size for which an MLP is made.
    """
    seen_BD = jax.lax.stop_gradient((1 + weight) * embeds_BD) - weight * embeds_BD
    seen_BD *= np.sqrt(embeds_BD.shape[-1])
    hidden_BD = jax.nn.relu(seen_BD @ params["hidden"] + params["hidden_bias"])
    logits_BG = hidden_BD @ params["out"] + params["out_bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits_BG, groups_B).mean()


def learned(adversary: Adversary, gradient: dict[str, jax.Array]) -> Adversary:
    """Returns the classifier after a step of its own optimizer."""
    updates, opt_state = _OPTIMIZER.update(gradient, adversary.opt_state)
    return Adversary(optax.apply_updates(adversary.params, updates), opt_state)
