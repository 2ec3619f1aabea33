"""`Clip`: model, parameters, tokenizer and image transform as one thing that a person uses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from clip_jax.data.image import ImageLike, ImageTransform
from clip_jax.data.tokenizer import Tokenizer, get_tokenizer
from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import get_templates
from clip_jax.evaluation.zero_shot import zero_shot_classifier
from clip_jax.losses import similarity_logits
from clip_jax.models.architectures import ClipConfig, get_architecture, override
from clip_jax.models.two_tower import TwoTower, count_trainable, init_params, l2_normalize
from clip_jax.sharding import batch_sharding, make_mesh, replicated
from clip_jax.training.checkpoint import newest_checkpoint, read_identity, read_params
from clip_jax.training.step import normalize_images
from clip_jax.weights.bundle import (
    Loaded,
    check_params,
    is_bundle,
    read_bundle,
    tokenizer_from_identity,
    write_bundle,
)

FORMATS = ("clip_jax", "huggingface", "open_clip")


@functools.partial(jax.jit, static_argnames=("config", "normalize", "out_sharding"))
def _embed_images(
    params: Any, images: jax.Array, config: ClipConfig, normalize: bool, out_sharding: NamedSharding
) -> jax.Array:
    embeds: Any = TwoTower(config).apply(
        {"params": params}, normalize_images(images, config), method="encode_image"
    )
    embeds = l2_normalize(embeds) if normalize else embeds.astype(jnp.float32)
    return jax.lax.with_sharding_constraint(embeds, out_sharding)


@functools.partial(jax.jit, static_argnames=("config", "normalize", "out_sharding"))
def _embed_tokens(
    params: Any, tokens: jax.Array, config: ClipConfig, normalize: bool, out_sharding: NamedSharding
) -> jax.Array:
    embeds: Any = TwoTower(config).apply({"params": params}, tokens, method="encode_text")
    embeds = l2_normalize(embeds) if normalize else embeds.astype(jnp.float32)
    return jax.lax.with_sharding_constraint(embeds, out_sharding)


class Clip:
    """A CLIP that is ready for use. Make one with `clip_jax.create` or `clip_jax.load`."""

    def __init__(
        self,
        config: ClipConfig,
        params: Any,
        tokenizer: Tokenizer | None = None,
        mesh: Mesh | None = None,
    ):
        """`mesh`: where `params` live; by default they are copied to every local device at first
        use."""
        self.config = config
        self.params = params
        self.model = TwoTower(config)
        self._tokenizer = tokenizer
        self._mesh = mesh
        self._placed: tuple[Any, Any] | None = None  # (params as given, the same on the mesh)

    def __repr__(self) -> str:
        return f"Clip({self.config.name!r}, {self.num_parameters:,} parameters)"

    @property
    def tokenizer(self) -> Tokenizer:
        """list[str] -> int32 (N, context_length). Raises `UserError` where the source had none."""
        if self._tokenizer is None:
            raise UserError(
                f"this {self.config.name} has no tokenizer: give one, for example "
                "create(name, tokenizer='clip_bpe'), or load from a source that has tokenizer files"
            )
        return self._tokenizer

    @functools.cached_property
    def transform(self) -> ImageTransform:
        """PIL image, uint8 (H, W, 3), path or bytes -> uint8 (S, S, 3); evaluation transform."""
        config = self.config
        return ImageTransform(
            image_size=config.image_size,
            resize=config.image_resize,
            interpolation=config.image_interpolation,
            mean=config.image_mean,
            std=config.image_std,
        )

    @property
    def num_parameters(self) -> int:
        """Trainable scalars; batch normalisation's running statistics are not counted."""
        return count_trainable(self.params)

    def encode_image(
        self,
        images: np.ndarray | Iterable[ImageLike],
        batch_size: int = 256,
        normalize: bool = True,
    ) -> np.ndarray:
        """Embeds images -> float32 (N, D), rows of length 1 unless `normalize=False`.

        `images`: uint8 (N, S, S, 3) already transformed, or anything `transform` takes, any number
        of it.
        """
        embed = functools.partial(_embed_images, config=self.config, normalize=normalize)
        size = self.config.image_size
        if isinstance(images, np.ndarray) and images.ndim == 4:
            if images.dtype != np.uint8 or images.shape[1:] != (size, size, 3):
                raise UserError(
                    f"images of shape {images.shape} and dtype {images.dtype}: must be uint8 "
                    f"(N, {size}, {size}, 3), or a list of images of any size"
                )
            chunks: Iterable[np.ndarray] = (
                images[i : i + batch_size] for i in range(0, len(images), batch_size)
            )
        else:
            if (
                isinstance(images, str | bytes | Path)
                or not isinstance(images, Iterable)
                or (isinstance(images, np.ndarray) and images.ndim == 3)
            ):
                images = [images]
            chunks = (
                np.stack([self.transform(image) for image in chunk])
                for chunk in _chunks(images, batch_size)
            )
        return self._embed(embed, chunks, batch_size)

    def encode_text(
        self, texts: str | Sequence[str], batch_size: int = 256, normalize: bool = True
    ) -> np.ndarray:
        """Embeds texts -> float32 (N, D), rows of length 1 unless `normalize=False`."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        embed = functools.partial(_embed_tokens, config=self.config, normalize=normalize)
        chunks = (self.tokenizer(chunk) for chunk in _chunks(texts, batch_size))
        return self._embed(embed, chunks, batch_size)

    def logits(self, images: Any, texts: Sequence[str]) -> np.ndarray:
        """float32 (N, M): exp(logit_scale)·cosine (+ bias) of every image with every text."""
        scale = jnp.exp(jnp.asarray(self.params["logit_scale"], jnp.float32))
        bias = jnp.asarray(self.params.get("logit_bias", 0.0), jnp.float32).reshape(())
        image_embeds, text_embeds = self.encode_image(images), self.encode_text(texts)
        return np.asarray(
            similarity_logits(jnp.asarray(image_embeds), jnp.asarray(text_embeds), scale, bias)
        )

    def zero_shot_classifier(
        self, classnames: Sequence[str], templates: str | Sequence[str] = "openai"
    ) -> np.ndarray:
        """float32 (D, C): a column a class, the mean of its normalised prompt embeddings,
        normalised.

        `templates`: a name of `evaluation.prompts`, a file, or texts with one `{}` each.
        """
        return zero_shot_classifier(self.encode_text, list(classnames), get_templates(templates))

    def classify(
        self, images: Any, classnames: Sequence[str], templates: str | Sequence[str] = "openai"
    ) -> np.ndarray:
        """float32 (N, C): softmax probabilities of the classes for each image."""
        classifier_DC = self.zero_shot_classifier(classnames, templates)
        cosine_NC = self.encode_image(images) @ classifier_DC
        logits_NC = math.exp(float(self.params["logit_scale"])) * cosine_NC
        return np.asarray(jax.nn.softmax(jnp.asarray(logits_NC), axis=-1))

    def save(self, directory: str | Path, format: str = "clip_jax") -> None:
        """Writes everything that `clip_jax.load` needs into a folder.

        Raises `UserError` for another format, or a folder that holds something else.
        """
        if format not in FORMATS:
            raise UserError(f"format={format!r}: choose one of {', '.join(FORMATS)}")
        if format != "clip_jax":
            raise UserError(
                f"format={format!r}: not built yet; only 'clip_jax' can be written so far"
            )
        write_bundle(Path(directory), self.config, self.params, self._tokenizer)

    def _embed(
        self, embed: Callable[..., jax.Array], chunks: Iterable[np.ndarray], batch_size: int
    ) -> np.ndarray:
        """Runs `embed` chunk by chunk over the mesh, one chunk ahead of the host."""
        if self._mesh is None:
            self._mesh = make_mesh(devices=jax.local_devices())
        mesh = self._mesh
        params = self._params_on_mesh(mesh)
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        results: list[np.ndarray] = []
        pending: tuple[jax.Array, int] | None = None
        with jax.set_mesh(mesh):
            for chunk in chunks:
                # A few sizes only, each a compilation: the full batch, or the next power of two.
                size = min(batch_size, 1 << (len(chunk) - 1).bit_length())
                size = max(-(-size // shards) * shards, len(chunk))
                padded = np.zeros((size, *chunk.shape[1:]), chunk.dtype)
                padded[: len(chunk)] = chunk
                rows = jax.make_array_from_callback(
                    padded.shape, batch_sharding(mesh), padded.__getitem__
                )
                embeds = embed(params, rows, out_sharding=replicated(mesh))
                if pending is not None:
                    results.append(np.asarray(pending[0])[: pending[1]])
                pending = embeds, len(chunk)
        if pending is None:
            return np.zeros((0, self.config.embed_dim), np.float32)
        results.append(np.asarray(pending[0])[: pending[1]])
        return np.concatenate(results)

    def _params_on_mesh(self, mesh: Mesh) -> Any:
        if self._placed is None or self._placed[0] is not self.params:
            leaves = jax.tree.leaves(self.params)
            placed = all(
                isinstance(leaf, jax.Array)
                and isinstance(leaf.sharding, NamedSharding)
                and leaf.sharding.mesh == mesh
                for leaf in leaves
            )
            on_mesh = self.params if placed else jax.device_put(self.params, replicated(mesh))
            self._placed = (self.params, on_mesh)
        return self._placed[1]


def _chunks(items: Iterable[Any], size: int) -> Iterable[list[Any]]:
    chunk: list[Any] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def create(
    name: str, seed: int = 0, tokenizer: str | Path | Tokenizer | None = None, **overrides: Any
) -> Clip:
    """A CLIP with random parameters.

    `tokenizer`: a name or path that `get_tokenizer` takes, or a tokenizer. `overrides`:
    `ClipConfig` fields such as `image_size=`, `context_length=`, `vocab_size=`. Raises `UserError`
    for unknown ones.
    """
    config = get_architecture(name, **overrides)
    if isinstance(tokenizer, str | Path):
        tokenizer = get_tokenizer(tokenizer)
    if tokenizer is not None:
        config, tokenizer = fit_tokenizer(config, tokenizer)
    params = jax.jit(lambda: init_params(config, jax.random.key(seed)))()
    return Clip(config, params, tokenizer)


def fit_tokenizer(
    config: ClipConfig, tokenizer: Tokenizer, *, keep_vocab_size: bool = True
) -> tuple[ClipConfig, Tokenizer]:
    """The two made one: the tokenizer at the model's context length, the model pooling at its end.

    Where the end of text is not the largest id, the text tower reads that id's position instead;
    without `keep_vocab_size` the model takes the tokenizer's vocabulary. Raises `UserError` where
    the tokenizer has more ids than the model.
    """
    if not keep_vocab_size:
        config = override(config, vocab_size=tokenizer.vocab_size)
    if tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"vocab_size={config.vocab_size} of {config.name}: the tokenizer has "
            f"{tokenizer.vocab_size} ids; give vocab_size={tokenizer.vocab_size} or more"
        )
    if config.text_pool != "last" and tokenizer.eos_id != tokenizer.vocab_size - 1:
        config = override(config, text_pool="eos", eos_id=tokenizer.eos_id)
    return config, tokenizer.with_context_length(config.context_length)


def load(source: str | Path, dtype: str = "float32") -> Clip:
    """A CLIP from a folder on disk: our export, a training run, or one of its checkpoints.

    `dtype` ("float32" or "bfloat16") is that of the parameters and of the computation. Raises
    `UserError` that says what is missing or damaged.
    """
    if dtype not in ("float32", "bfloat16"):
        raise UserError(f"dtype={dtype!r}: choose float32 or bfloat16")
    config, params, tokenizer = _read_source(Path(source), dtype)
    return Clip(config, params, tokenizer)


def _read_source(source: Path, dtype: str) -> Loaded:
    """Whatever is on disk at `source`. Raises `UserError` that says what was looked for."""
    if not source.exists():
        raise UserError(
            f"{source}: no such file or folder "
            "(hub ids are not downloaded yet; give a folder on disk)"
        )
    if is_bundle(source):
        return read_bundle(source, dtype)
    if is_bundle(source / "model"):
        return read_bundle(source / "model", dtype)
    checkpoint = _find_checkpoint(source)
    if checkpoint is not None:
        return _read_checkpoint(checkpoint, dtype)
    raise UserError(
        f"{source}: neither an export (config.json with format clip_jax), nor a training run with "
        "model/ or a complete checkpoint in checkpoints/; other layouts cannot be read yet"
    )


def _find_checkpoint(source: Path) -> Path | None:
    for folder in (source / "checkpoints", source):
        found = newest_checkpoint(folder)
        if found is not None:
            return found
    return source if (source / "identity").is_dir() and (source / "params").is_dir() else None


def _read_checkpoint(directory: Path, dtype: str) -> Loaded:
    identity = read_identity(directory)
    config = ClipConfig.from_dict(identity["architecture"])
    tokenizer = tokenizer_from_identity(identity)
    return check_params(config, read_params(directory), directory, dtype, tokenizer)
