"""Learning of adapters from labelled images, several runs in one program.

Shape letters: R runs, B images a batch of each, K classes, D width of the shared space.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from clip_jax.adaptation.context import ClassPrompts, with_words
from clip_jax.adaptation.methods import Method, Recipe
from clip_jax.adaptation.towers import encode
from clip_jax.adaptation.tree import Adapter
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import l2_normalize, normalize_images
from clip_jax.training.step.state import TrainState

WARMUP_RATE = 1e-5
Batch = dict[str, Any]  # "inputs": images (B, S, S, 3) uint8, or features (B, D); "labels"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, its classes, and what of it learns.

    Attributes:
      config, params: of a model whose blocks are separate; `params` are on the devices.
      prompts: of the classes, for a text tower that learns.
      classifier_DK: of one that does not.
      method: what learns.
    """

    config: ClipConfig
    params: Any
    method: Method
    prompts: ClassPrompts | None
    classifier_DK: jax.Array | None
    learns_images: bool

    def classifier(self, adapter: Adapter, params: Any, key: jax.Array | None) -> jax.Array:
        """Returns (D, K), columns of length 1; with dropout if there is a key."""
        if self.prompts is None:
            assert self.classifier_DK is not None
            return self.classifier_DK
        config, tokens_KL, rows = self.prompts
        if self.method.context is not None:
            params, adapter = with_words(params, adapter, rows)
        dropout = 0.0 if key is None else self.method.dropout
        tokens = jnp.asarray(tokens_KL)
        embeds_KD = encode(config, params, adapter, tokens, "text", self.method.scale, dropout, key)
        return l2_normalize(embeds_KD).T

    def logits(
        self, adapter: Adapter, params: Any, inputs: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Returns exp(t)·cosine, (B, K), of images or of cached features (B, D)."""
        keys = (None, None) if key is None else jax.random.split(key)
        if self.learns_images:
            images = normalize_images(inputs, self.config)
            dropout = 0.0 if key is None else self.method.dropout
            others = self._without_words(adapter)
            embeds_BD = encode(
                self.config, params, others, images, "vision", self.method.scale, dropout, keys[0]
            )
            inputs = l2_normalize(embeds_BD)
        scale = jnp.exp(jnp.asarray(params["logit_scale"], jnp.float32))
        return scale * inputs @ self.classifier(adapter, params, keys[1])

    def _without_words(self, adapter: Adapter) -> Adapter:
        if self.method.context is None:
            return adapter
        return {path: leaf for path, leaf in adapter.items() if path != "text/context"}


def start_state(problem: Problem, adapters: Any, seeds: np.ndarray) -> TrainState:
    """Makes the state of R runs: every leaf of `adapters` has a leading axis R."""
    optimizer = _optimizer(problem.method.recipe)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=adapters,
        opt_state=jax.vmap(optimizer.init)(adapters),
        ema_params=None,
        key=jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)),
        failed=jnp.zeros(len(seeds), bool),
    )


def make_step(
    problem: Problem, steps: int
) -> Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, jax.Array]]:
    """Makes (state, params, batches, rates (R,)) -> (state, losses (R,)), compiled.

    A batch's arrays have a leading axis R. The rate follows a cosine to 0 over `steps`. A run whose
    loss or gradient is not finite stays as it was from then on.
    """
    recipe = problem.method.recipe
    optimizer = _optimizer(recipe)

    def one(
        adapter: Adapter,
        opt_state: Any,
        key: jax.Array,
        failed: jax.Array,
        batch: Batch,
        peak: jax.Array,
        step: jax.Array,
        params: Any,
    ) -> tuple[Adapter, Any, jax.Array, jax.Array]:
        def loss(adapter: Adapter) -> jax.Array:
            drop_key = jax.random.fold_in(key, step) if problem.method.dropout else None
            logits = problem.logits(adapter, params, batch["inputs"], drop_key)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
            return losses.mean()

        value, gradients = jax.value_and_grad(loss)(adapter)
        failed |= ~jnp.isfinite(value) | ~jnp.isfinite(optax.tree.norm(gradients))
        updates, new_state = optimizer.update(gradients, opt_state, adapter)
        rate = learning_rate(recipe, step, steps, peak)
        new = jax.tree.map(lambda leaf, update: leaf - rate * update, adapter, updates)

        def kept(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(failed, b, a), new, old)

        return kept(new, adapter), kept(new_state, opt_state), failed, value

    def run(
        state: TrainState, params: Any, batches: Batch, rates: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        together = jax.vmap(one, in_axes=(0, 0, 0, 0, 0, 0, None, None))
        adapters, opt_state, failed, losses = together(
            state.params,
            state.opt_state,
            state.key,
            state.failed,
            batches,
            rates,
            state.step,
            params,
        )
        new = state.replace(
            step=state.step + 1, params=adapters, opt_state=opt_state, failed=failed
        )
        return new, losses

    return jax.jit(run, donate_argnums=0)


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """The direction of a step, with decoupled decay, before the learning rate."""
    first = optax.scale_by_adam() if recipe.optimizer == "adamw" else optax.trace(0.9)
    return optax.chain(first, optax.add_decayed_weights(recipe.weight_decay))


def learning_rate(recipe: Recipe, step: jax.Array, steps: int, peak: Any) -> jax.Array:
    """Returns the rate of a step, (): a cosine from the peak to 0 over `steps`.

    Before it is a warm-up at 1e-5, as in CoOp, of a tenth of the steps at most.
    """
    warmup = min(recipe.warmup_steps, steps // 10)
    done = jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
    cosine = peak * 0.5 * (1 + jnp.cos(jnp.pi * done))
    return jnp.where(step < warmup, jnp.minimum(peak, WARMUP_RATE), cosine)
