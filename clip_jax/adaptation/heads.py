"""Heads of feature methods, as they are stored in an adapter."""

import jax
import jax.numpy as jnp
import numpy as np

from clip_jax.adaptation.feature_methods import FEATURE_METHODS
from clip_jax.adaptation.feature_training import Fitted, class_logits
from clip_jax.adaptation.folder import HEAD
from clip_jax.adaptation.tree import Adapter

PROBE = "linear_probe"  # its logits are `features @ weights + bias`


def has_head(adapter: Adapter) -> bool:
    """Whether an adapter makes logits by itself, for the classes that it learned."""
    return f"{HEAD}classifier" in adapter


def head_logits(method: str, adapter: Adapter, features_ND: np.ndarray) -> np.ndarray:
    """Returns the logits float32 (N, C) of image features with unit rows."""

    def under(prefix: str) -> dict[str, jax.Array]:
        start = f"{HEAD}{prefix}/"
        found = {p.removeprefix(start): leaf for p, leaf in adapter.items() if p.startswith(start)}
        return {name: jnp.asarray(leaf) for name, leaf in found.items()}

    if method == PROBE:
        return features_ND @ adapter[f"{HEAD}params/weights_DC"] + adapter[f"{HEAD}params/bias_C"]
    zero = jnp.zeros(())
    fitted = Fitted(under("params"), under("options"), zero, zero)
    classifier = jnp.asarray(adapter[f"{HEAD}classifier"])
    features = jnp.asarray(features_ND)
    return np.asarray(class_logits(FEATURE_METHODS[method], fitted, features, classifier))
