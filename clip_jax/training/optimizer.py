"""AdamW as the paper uses it: decay on matrices only, linear warm-up, cosine to 0."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax

from clip_jax.training.config import OptimizerConfig

# Decay shrinks what multiplies activations. Gains, biases, position tables, the class token and
# the logit scale are left alone (CLIP paper section 2.5), running statistics are no parameters at
# all.
NO_DECAY = re.compile(r"(^|/)(\w*bias|\w*scale|positions|class_token|mean|var)$")


def decay_mask(params: Any) -> Any:
    """True at the leaves that weight decay acts on."""

    def decays(path: Any, _: Any) -> bool:
        return not NO_DECAY.search(jax.tree_util.keystr(path, simple=True, separator="/"))

    return jax.tree_util.tree_map_with_path(decays, params)


def learning_rate_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Step -> learning rate: linear from 0 over the warm-up, then a cosine that reaches 0 at
    `steps`."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, 1),
        end_value=0.0,
    )


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping, then AdamW with the schedule above."""
    adamw = optax.adamw(
        learning_rate_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
        mu_dtype=jnp.dtype(config.first_moment_dtype),
    )
    if config.clip_norm is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)
