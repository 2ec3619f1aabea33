"""Terms of the loss that keep a model near what it was without shots."""

import dataclasses
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from clip_jax.arguments import Checked, Range

Weight = Annotated[float, Range(0)]


class Seen(NamedTuple):
    """Embeddings and logits of a batch: B images of K classes, in a space of width D.

    Attributes:
      images_BD: float32, rows of length 1.
      classifier_DK: float32, columns of length 1; None if each image has one of its own.
      logits_BK: float32.
    """

    images_BD: jax.Array
    classifier_DK: jax.Array | None
    logits_BK: jax.Array


@dataclasses.dataclass(frozen=True)
class Pull(Checked):
    """Weights of the terms, all 0 at first; f, w and p are the model's, f̄, w̄ and p̄ zero-shot."""

    texts_squared: Weight = 0.0  # mean over classes of ‖w - w̄‖² (KgCoOp, section 3.2)
    texts: Weight = 0.0  # mean of |w - w̄| over classes and features (PromptSRC, section 3.2)
    images: Weight = 0.0  # mean of |f - f̄| over images and features (as that)
    # Mean of p̄·log(p̄/p) over images and classes, as PromptSRC's authors have it.
    logits: Weight = 0.0
    distillation: Weight = 0.0  # mean over images of KL(p̄ ‖ p)

    def cost(self, seen: Seen, zero_shot: Seen) -> jax.Array:
        """Returns the weighted sum of the terms, ()."""
        cost = jnp.zeros(())
        if self.texts or self.texts_squared:
            assert seen.classifier_DK is not None
            assert zero_shot.classifier_DK is not None
            apart_DK = seen.classifier_DK - zero_shot.classifier_DK
            cost += self.texts_squared * jnp.square(apart_DK).sum(0).mean()
            cost += self.texts * jnp.abs(apart_DK).mean()
        if self.images:
            cost += self.images * jnp.abs(seen.images_BD - zero_shot.images_BD).mean()
        if self.logits or self.distillation:
            log_p_BK, log_q_BK = map(jax.nn.log_softmax, (zero_shot.logits_BK, seen.logits_BK))
            divergence_B = (jnp.exp(log_p_BK) * (log_p_BK - log_q_BK)).sum(1)
            weight = self.distillation + self.logits / log_p_BK.shape[1]
            cost += weight * divergence_B.mean()
        return cost


NO_PULL = Pull()
