"""Model of two towers in one space (paper figure 3)."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from clip_jax.models.architectures import get_architecture
from clip_jax.models.bert import BertTextTransformer
from clip_jax.models.config import ClipConfig
from clip_jax.models.convnext import ConvNeXt
from clip_jax.models.decoder import CaptionDecoder
from clip_jax.models.fastvit import FastViT
from clip_jax.models.hybrid import HybridTransformer
from clip_jax.models.resnet import RUNNING_NAMES, ModifiedResNet
from clip_jax.models.text import TextTransformer
from clip_jax.models.vision import VisionTransformer

VISION_TOWERS: dict[str, type[nn.Module]] = {
    "vit": VisionTransformer,
    "hybrid": HybridTransformer,
    "resnet": ModifiedResNet,
    "convnext": ConvNeXt,
    "fastvit": FastViT,
}
TEXT_TOWERS: dict[str, type[nn.Module]] = {
    "transformer": TextTransformer,
    "bert": BertTextTransformer,
}


class CLIPOutput(NamedTuple):
    """Output of a forward pass, all float32; embeddings are L2-normalised, the scale is exp(t)."""

    image_embeds: jax.Array  # (B, D)
    text_embeds: jax.Array  # (B, D)
    logit_scale: jax.Array  # ()
    logit_bias: jax.Array  # (); 0 if the model has no bias


def normalize_images(images: jax.Array, config: ClipConfig) -> jax.Array:
    """(B, S, S, 3) uint8 -> float32: scaled to [0, 1], minus mean, over standard deviation."""
    mean, std = jnp.asarray(config.image_mean), jnp.asarray(config.image_std)
    # This is (x/255 − mean)/std with one multiplication and one addition per pixel.
    return images.astype(jnp.float32) * (1 / (255 * std)) - mean / std


def l2_normalize(x_BD: jax.Array) -> jax.Array:
    """(B, D) -> (B, D) float32 rows of length 1.

    The cast comes first, as squares overflow in half precision. A row of zeros gives zeros and a
    zero gradient instead of NaN; every other row is divided by its exact norm, without an epsilon,
    as in OpenAI's code.
    """
    x_BD = x_BD.astype(jnp.float32)
    squares = jnp.sum(x_BD * x_BD, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.where(squares > 0, squares, 1.0))
    return x_BD * jnp.where(squares > 0, inverse, 0.0)


class TwoTower(nn.Module):
    """Image tower and text tower, each projected into one space."""

    config: ClipConfig

    def setup(self) -> None:
        config = self.config
        self.vision = VISION_TOWERS[config.vision.kind](config.vision, config)
        self.text = TEXT_TOWERS[config.text.kind](config.text, config)
        if config.decoder is not None:
            self.decoder = CaptionDecoder(config.decoder, config.text, config)
        self.logit_scale = self.param(
            "logit_scale", nn.initializers.constant(self.config.logit_scale_init), (), jnp.float32
        )
        if self.config.logit_bias_init is not None:
            self.logit_bias = self.param(
                "logit_bias", nn.initializers.constant(self.config.logit_bias_init), (), jnp.float32
            )

    def encode_image(
        self, images: jax.Array, train: bool = False, rows: jax.Array | None = None
    ) -> jax.Array:
        """(B, S, S, 3) float, normalised -> (B, D) in the compute dtype, not L2-normalised.

        `rows` (B,) int are the images' numbers in the global batch; see `__call__`.
        """
        if train and getattr(self.config.vision, "patch_dropout", None):
            rows = jnp.arange(len(images)) if rows is None else rows
            return self.vision(images, train, rows=rows)
        return self.vision(images, train)

    def encode_text(self, tokens: jax.Array) -> jax.Array:
        """(B, L) int -> (B, D) in the compute dtype, not L2-normalised."""
        return self.text(tokens)

    def image_memory(self, images: jax.Array) -> jax.Array:
        """(B, S, S, 3) float, normalised -> (B, N, C): memory for the caption decoder."""
        return self.vision(images, with_memory=True)[1]

    def caption_logits(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
        """(B, S, S, 3) float normalised, (B, L) int -> (B, L, V) float32 logits (CoCa).

        The logits at a token predict the next token.
        """
        return self.decoder(self.text(tokens, with_tokens=True)[1], self.image_memory(images))

    def next_token_logits(
        self, tokens: jax.Array, position: jax.Array, memory: jax.Array
    ) -> jax.Array:
        """(R, L) int, () int, (B, N, C) -> (R, V) float32: logits after the token at `position`.

        L is at most context_length; an image has R / B adjacent rows. Call it for each position
        from 0: the first time with `mutable=[CACHE, MEMORY]`, then with both collections passed in
        and `mutable=[CACHE]`.
        """
        x_R1D = self.text(tokens, position=position)
        return self.decoder(x_R1D, memory, position, tokens.shape[1])[:, 0]

    def __call__(
        self,
        images: jax.Array,
        tokens: jax.Array,
        train: bool = False,
        rows: jax.Array | None = None,
    ) -> CLIPOutput:
        """(B, S, S, 3) float normalised, (B, L) int -> `CLIPOutput`.

        `train` matters for batch normalisation (then pass `mutable=["batch_statistics"]`) and for
        `vision.patch_dropout`: then pass `rngs={"dropout": key}`, and, for a part of a global
        batch, the rows' numbers in it as `rows` (B,) int.
        """
        if self.is_initializing() and self.config.decoder is not None:
            self.caption_logits(images, tokens)
        has_bias = self.config.logit_bias_init is not None
        return CLIPOutput(
            l2_normalize(self.encode_image(images, train, rows)),
            l2_normalize(self.encode_text(tokens)),
            jnp.exp(self.logit_scale),
            self.logit_bias if has_bias else jnp.zeros((), jnp.float32),
        )


def dummy_inputs(config: ClipConfig, batch: int = 1) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of one batch, (B, S, S, 3) float32 and (B, L) int32, for `eval_shape` and `init`."""
    return (
        jax.ShapeDtypeStruct((batch, config.image_size, config.image_size, 3), jnp.float32),
        jax.ShapeDtypeStruct((batch, config.context_length), jnp.int32),
    )


def init_params(config: ClipConfig, key: jax.Array) -> dict[str, Any]:
    """Random parameters, a nested dict of float32 arrays; pure, for `jit` or `eval_shape`."""
    inputs = [jnp.zeros(x.shape, x.dtype) for x in dummy_inputs(config)]
    return TwoTower(config).init(key, *inputs)["params"]


@functools.lru_cache(maxsize=256)
def param_shapes(config: ClipConfig) -> Any:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`s, cached per configuration; read-only."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def is_buffer(path: Any) -> bool:
    """Whether the leaf at a tree path is a running statistic: stored, but not trained."""
    names = [getattr(entry, "key", "") for entry in path]
    return names[-1] in RUNNING_NAMES and "norm" in names[-2]


def has_running_statistics(params: Any) -> bool:
    """Whether a tree of parameters (arrays or shapes) has running statistics of batch norm."""
    return any(is_buffer(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0])


def count_trainable(params: Any) -> int:
    """The number of trainable scalars, without batch normalisation's running statistics."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return sum(int(leaf.size) for path, leaf in leaves if not is_buffer(path))


def count_parameters(name: str, **overrides: Any) -> int:
    """Counts the trainable scalars of an architecture, without allocating them.

    Raises `UserError` for an unknown name or field.
    """
    # Stacked blocks have the same parameters and are traced once.
    config = get_architecture(name, **(overrides | {"scan_layers": True}))
    return count_trainable(param_shapes(config))
