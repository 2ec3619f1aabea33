"""Learning of adapters from labelled images, several runs in one program.

Shape letters: R runs, B images a batch of each, K classes, D width of the shared space.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.stats

from clip_jax.adaptation.context import (
    ClassPrompts,
    cosines_of_each,
    has_meta_net,
    text_classifier,
    without_words,
)
from clip_jax.adaptation.derived import derived
from clip_jax.adaptation.methods import Method, Recipe
from clip_jax.adaptation.pull import NO_PULL, Seen
from clip_jax.adaptation.towers import encode
from clip_jax.adaptation.tree import Adapter
from clip_jax.models.config import ClipConfig
from clip_jax.models.two_tower import l2_normalize, normalize_images
from clip_jax.training.config import OptimizerConfig, TowerOptimizerConfig
from clip_jax.training.step.parameter_groups import rate_multipliers
from clip_jax.training.step.state import TrainState

WARMUP_RATE = 1e-5
Batch = dict[str, Any]  # "inputs": images (B, S, S, 3) uint8, or features (B, D); "labels"


class Frozen(NamedTuple):
    """Arrays that do not learn, on the devices.

    Attributes:
      params: of a model whose blocks are separate.
      of_base: `derived.bases` of them.
    """

    params: Any
    of_base: Adapter


@dataclasses.dataclass(frozen=True)
class Problem:
    """A model, its classes, and what of it learns.

    Attributes:
      config, frozen: of the model.
      method: what learns.
      prompts: of the classes, for a text tower that learns.
      classifier_DK: the zero-shot classifier, columns of length 1.
      learns_images: whether the image tower changes; if not, its features are the inputs.
    """

    config: ClipConfig
    frozen: Frozen
    method: Method
    prompts: ClassPrompts | None
    classifier_DK: jax.Array
    learns_images: bool

    def logits(self, adapter: Adapter, frozen: Frozen, inputs: jax.Array) -> jax.Array:
        """Returns exp(t)·cosine, (B, K), of images uint8 or of cached features (B, D)."""
        return self.seen(adapter, frozen, inputs).logits_BK

    def seen(
        self, adapter: Adapter, frozen: Frozen, inputs: jax.Array, key: jax.Array | None = None
    ) -> Seen:
        """Returns what the adapted model makes of a batch; with dropout if there is a key."""
        adapter = derived(adapter, frozen.of_base)
        image_key, text_key = (None, None) if key is None else jax.random.split(key)
        images_BD = self._images(without_words(adapter), frozen, inputs, image_key)

        def classifier(adapter: Adapter) -> jax.Array:
            if self.prompts is None:
                return self.classifier_DK
            options = self._tower_options(text_key)
            return text_classifier(self.prompts, frozen.params, adapter, *options)

        scale = _logit_scale(frozen)
        if has_meta_net(adapter):
            cosines_BK = cosines_of_each(classifier, adapter, images_BD)
            return Seen(images_BD, None, scale * cosines_BK)
        classifier_DK = classifier(adapter)
        return Seen(images_BD, classifier_DK, scale * images_BD @ classifier_DK)

    def loss(
        self, adapter: Adapter, frozen: Frozen, batch: Batch, key: jax.Array | None = None
    ) -> jax.Array:
        """Returns the mean cross-entropy of a batch in nats, (), and the method's pull."""
        seen, pull = self.seen(adapter, frozen, batch["inputs"], key), self.method.pull
        losses_B = optax.softmax_cross_entropy_with_integer_labels(seen.logits_BK, batch["labels"])
        if pull == NO_PULL:
            return losses_B.mean()
        return losses_B.mean() + pull.cost(seen, self.zero_shot(frozen, batch["inputs"]))

    def zero_shot(self, frozen: Frozen, inputs: jax.Array) -> Seen:
        """Returns what the model alone makes of a batch."""
        images_BD = self._images({}, frozen, inputs, None)
        logits_BK = _logit_scale(frozen) * images_BD @ self.classifier_DK
        return Seen(images_BD, self.classifier_DK, logits_BK)

    def _images(
        self, adapter: Adapter, frozen: Frozen, inputs: jax.Array, key: jax.Array | None
    ) -> jax.Array:
        """Returns features of length 1, (B, D)."""
        if not self.learns_images:
            return inputs
        images, options = normalize_images(inputs, self.config), self._tower_options(key)
        return l2_normalize(encode(self.config, frozen.params, adapter, images, "vision", *options))

    def _tower_options(self, key: jax.Array | None) -> tuple[float, float, jax.Array | None]:
        return self.method.scale, 0.0 if key is None else self.method.dropout, key


def _logit_scale(frozen: Frozen) -> jax.Array:
    return jnp.exp(jnp.asarray(frozen.params["logit_scale"], jnp.float32))


def start_state(problem: Problem, adapters: Any, seeds: np.ndarray) -> TrainState:
    """Makes the state of R runs: every leaf of `adapters` has a leading axis R.

    Its `ema_params` are the sum so far of a recipe's mean over all steps.
    """
    recipe = problem.method.recipe
    optimizer = _optimizer(recipe)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=adapters,
        opt_state=jax.vmap(optimizer.init)(adapters),
        ema_params=None if recipe.averaged is None else jax.tree.map(jnp.zeros_like, adapters),
        key=jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32)),
        failed=jnp.zeros(len(seeds), bool),
    )


def make_step(
    problem: Problem, steps: int
) -> Callable[[TrainState, Any, Batch, jax.Array], tuple[TrainState, jax.Array]]:
    """Makes (state, problem.frozen, batches, rates (R,)) -> (state, losses (R,)), compiled.

    A batch's arrays have a leading axis R. The rate follows a cosine to 0 over `steps`. A run whose
    loss or gradient is not finite stays as it was from then on.
    """
    recipe = problem.method.recipe
    optimizer = _optimizer(recipe)
    shares = jnp.asarray(_shares(recipe, steps))

    def one(
        adapter: Adapter,
        opt_state: Any,
        total: Adapter | None,
        key: jax.Array,
        failed: jax.Array,
        batch: Batch,
        peak: jax.Array,
        step: jax.Array,
        frozen: Frozen,
    ) -> tuple[Adapter, Any, Adapter | None, jax.Array, jax.Array]:
        """Returns one run's adapter, optimizer state, sum for the mean, failure and loss."""
        drop_key = jax.random.fold_in(key, step) if problem.method.dropout else None
        value, gradients = jax.value_and_grad(problem.loss)(adapter, frozen, batch, drop_key)
        failed |= ~jnp.isfinite(value) | ~jnp.isfinite(optax.tree.norm(gradients))
        updates, new_state = optimizer.update(gradients, opt_state, adapter)
        rate = learning_rate(recipe, step, steps, peak)
        new = jax.tree.map(
            lambda leaf, update, factor: leaf - rate * factor * update,
            adapter,
            updates,
            _rate_factors(recipe, adapter),
        )

        def kept(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(failed, b, a), new, old)

        new = kept(new, adapter)
        if total is not None:
            total = jax.tree.map(lambda before, leaf: before + shares[step] * leaf, total, new)
        return new, kept(new_state, opt_state), total, failed, value

    def run(
        state: TrainState, frozen: Frozen, batches: Batch, rates: jax.Array
    ) -> tuple[TrainState, jax.Array]:
        """Steps all runs; see `make_step`."""
        together = jax.vmap(one, in_axes=(0, 0, 0, 0, 0, 0, 0, None, None))
        adapters, opt_state, total, failed, losses = together(
            state.params,
            state.opt_state,
            state.ema_params,
            state.key,
            state.failed,
            batches,
            rates,
            state.step,
            frozen,
        )
        new = state.replace(
            step=state.step + 1,
            params=adapters,
            opt_state=opt_state,
            ema_params=total,
            failed=failed,
        )
        return new, losses

    return jax.jit(run, donate_argnums=0)


def _optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """The direction of a step, with decoupled decay, before the learning rate."""
    first = optax.scale_by_adam() if recipe.optimizer == "adamw" else optax.trace(0.9)
    return optax.chain(first, optax.add_decayed_weights(recipe.weight_decay))


def _rate_factors(recipe: Recipe, adapter: Adapter) -> dict[str, Any]:
    """The factors of the rate by path, 1 without layer-wise decay; the trainer's own rule."""
    tower = TowerOptimizerConfig(layer_decay=recipe.layer_decay)
    factors: dict[str, Any] = rate_multipliers(adapter, OptimizerConfig(vision=tower, text=tower))
    return factors


def _shares(recipe: Recipe, steps: int) -> np.ndarray:
    """The weights (steps,) of a recipe's mean over the adapters after each step; their sum is 1."""
    if recipe.averaged is None:
        return np.zeros(0, np.float32)
    centre, deviation = (share * steps for share in recipe.averaged)
    weights = scipy.stats.norm.pdf(np.arange(1, steps + 1), centre, deviation)
    shares: np.ndarray = (weights / weights.sum()).astype(np.float32)
    return shares


def learning_rate(recipe: Recipe, step: jax.Array, steps: int, peak: Any) -> jax.Array:
    """Returns the rate of a step, (): a cosine from the peak to 0 over `steps`.

    Before it is a warm-up at 1e-5, as in CoOp.
    """
    warmup = recipe.warmup(steps)
    done = jnp.clip((step - warmup) / max(steps - warmup, 1), 0, 1)
    cosine = peak * 0.5 * (1 + jnp.cos(jnp.pi * done))
    return jnp.where(step < warmup, jnp.minimum(peak, WARMUP_RATE), cosine)
