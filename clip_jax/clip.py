"""`Clip`: model, parameters, tokenizer and image transform in one object."""

import functools
import hashlib
import itertools
import logging
import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from clip_jax.arguments import local_path, text_list, whole_number, yes_or_no
from clip_jax.encoding import embed_images, embed_tokens
from clip_jax.errors import UserError
from clip_jax.evaluation.prompts import Templates
from clip_jax.evaluation.zero_shot import zero_shot_classifier
from clip_jax.images.decoding import ImageLike
from clip_jax.images.inputs import image_batches
from clip_jax.images.transform import ImageTransform
from clip_jax.losses import similarity_logits
from clip_jax.models.config import ClipConfig
from clip_jax.models.features import Features, in_order, tower_features
from clip_jax.models.generation import (
    SEEDS,
    Generation,
    check_decoder,
    generate_tokens,
    generation_settings,
)
from clip_jax.models.text import needed_tokens
from clip_jax.models.two_tower import TwoTower, count_trainable, normalize_images
from clip_jax.sharding import batch_sharding, leaves_by_path, make_mesh, replicated
from clip_jax.text.lengths import by_length
from clip_jax.text.tokenizer import Tokenizer
from clip_jax.weights.layouts.layout import NoTokenizerError
from clip_jax.weights.save import save_model

logger = logging.getLogger(__name__)
ALL = 1 << 30  # a batch that holds everything


@functools.partial(jax.jit, static_argnames=("config", "tower"))
def _features(params: Any, inputs: jax.Array, config: ClipConfig, tower: str) -> Features:
    return tower_features(config, params, inputs, tower)


class Clip:
    """CLIP model that is ready for use; made by `clip_jax.create` or `clip_jax.load`."""

    def __init__(
        self,
        config: ClipConfig,
        params: Any,
        tokenizer: Tokenizer | None = None,
        mesh: Mesh | None = None,
        find_tokenizer: Callable[[], Tokenizer | None] | None = None,
    ):
        """Combines a model's parts.

        `mesh` holds `params`; by default they are copied to every local device on first use.
        `find_tokenizer` is called on first use if no `tokenizer` is given.
        """
        self.config = config
        self.params = params
        self.model = TwoTower(config)
        self._tokenizer = tokenizer
        self._find_tokenizer = find_tokenizer
        self._mesh = mesh
        self._placed: tuple[Any, Any] | None = None  # (params as given, the same on the mesh)

    def __repr__(self) -> str:
        return f"Clip({self.config.name!r}, {self.num_parameters:,} parameters)"

    @property
    def tokenizer(self) -> Tokenizer:
        """list[str] -> int32 (N, context_length). Raises `UserError` if the source had none."""
        found = self._own_tokenizer()
        if found is None:
            raise UserError(
                f"this {self.config.name} has no tokenizer, as its source has no tokenizer files; "
                "give the one that it was trained with: load(…, tokenizer=…)"
            )
        return found

    def _own_tokenizer(self) -> Tokenizer | None:
        """Returns the tokenizer, or None if there is none."""
        if self._tokenizer is None and self._find_tokenizer is not None:
            self._tokenizer = self._find_tokenizer()
            self._find_tokenizer = None
        return self._tokenizer

    @functools.cached_property
    def transform(self) -> ImageTransform:
        """Evaluation transform: image -> uint8 (S, S, 3).

        An image is a PIL image, path, bytes, open file, or pixels (H, W) or (H, W, 1, 3 or 4);
        `clip_jax.images.levels` lists the accepted pixel values.
        """
        config = self.config
        return ImageTransform(
            image_size=config.image_size,
            resize=config.image_resize,
            interpolation=config.image_interpolation,
            mean=config.image_mean,
            std=config.image_std,
            fill=config.image_fill,
        )

    @property
    def num_parameters(self) -> int:
        """Number of trainable scalars, without batch normalisation's running statistics."""
        return count_trainable(self.params)

    @property
    def logit_scale(self) -> float:
        """Returns the factor by which cosines are multiplied to be logits."""
        return math.exp(float(self.params["logit_scale"]))

    @property
    def fingerprint(self) -> str:
        """Hash of the configuration and every parameter, as 64 hexadecimal digits."""
        digest = hashlib.sha256(repr(self.config).encode())
        for path, leaf in sorted(leaves_by_path(self.params).items()):
            array = np.asarray(leaf)
            digest.update(f"{path} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()

    def encode_image(
        self,
        images: ImageLike | Iterable[ImageLike],
        batch_size: int = 256,
        normalize: bool = True,
        projected: bool = True,
    ) -> np.ndarray:
        """Embeds images: float32 (N, D), rows of length 1 unless `normalize=False`.

        `images` are (N, S, S, 3) already transformed, or one or an ordered iterable of whatever
        `transform` takes. `projected=False` gives the features before the projection into the
        shared space, (N, tower's width), which probes are often fitted on (paper, appendix A.3); a
        ResNet, whose pooling projects, has none but the embeddings. Raises `UserError` for anything
        else.
        """
        embed = functools.partial(
            embed_images,
            config=self.config,
            normalize=yes_or_no(normalize, "normalize"),
            projected=yes_or_no(projected, "projected"),
        )
        return self._embed(embed, self._image_chunks(images, batch_size), batch_size)

    def _image_chunks(self, images: Any, batch_size: int) -> Iterable[np.ndarray]:
        """Yields the images of `encode_image` as chunks, uint8 (up to batch_size, S, S, 3)."""
        size = whole_number(batch_size, "batch_size")
        return image_batches(images, self.transform, self.config.image_size, size)

    def encode_text(
        self,
        texts: str | Iterable[str],
        batch_size: int = 256,
        normalize: bool = True,
        truncate: bool | None = None,
    ) -> np.ndarray:
        """Embeds texts: float32 (N, D), rows of length 1 unless `normalize=False`.

        `texts` are one string or an ordered iterable of them; `UserError` for anything else. A text
        longer than the context is cut if `truncate` is True, and a `UserError` if it is False. None
        leaves it to the tokenizer, which raises unless it was made or saved with truncation.
        """
        batch_size = whole_number(batch_size, "batch_size")
        normalize = yes_or_no(normalize, "normalize")
        truncate = None if truncate is None else yes_or_no(truncate, "truncate")
        texts = _texts(texts)
        embed = functools.partial(embed_tokens, config=self.config, normalize=normalize)
        tokens_NL = self.tokenizer(texts, truncate=truncate)
        # Prompts of several classes and templates repeat, and most are far shorter than L.
        tokens_ML, of_text = np.unique(tokens_NL, axis=0, return_inverse=True)
        needed = needed_tokens(tokens_ML, self.config.text)
        batches = list(by_length(needed, tokens_ML.shape[1], batch_size))
        chunks = (tokens_ML[rows, :length] for rows, length in batches)
        embeds_MD = self._embed(embed, chunks, batch_size)
        in_order = np.argsort(np.concatenate([np.zeros(0, int), *(rows for rows, _ in batches)]))
        return embeds_MD[in_order[of_text.reshape(-1)]]

    def image_features(self, images: ImageLike | Iterable[ImageLike]) -> Features:
        """Computes every block's output and every attention's weights for images, in one batch.

        Takes the images of `encode_image`, at least one. A class token is token 0; patches follow
        row by row.
        """
        pixels = next(iter(self._image_chunks(images, ALL)), None)
        if pixels is None:
            raise UserError("images: there are none; give at least one image")
        return self._features(normalize_images(jnp.asarray(pixels), self.config), "image")

    def text_features(self, texts: str | Iterable[str]) -> Features:
        """Computes every block's output and every attention's weights for texts, in one batch."""
        texts = _texts(texts)
        if not texts:
            raise UserError("texts: there are none; give at least one text")
        return self._features(jnp.asarray(self.tokenizer(texts)), "text")

    def _features(self, inputs: jax.Array, tower: str) -> Features:
        found = _features(self.params, inputs, self.config, tower)
        return Features(*(in_order(values) for values in found))

    def logits(
        self, images: Any, texts: str | Iterable[str], truncate: bool | None = None
    ) -> np.ndarray:
        """Computes float32 (N, M): exp(logit_scale)·cosine (+ bias) of all images and texts.

        `truncate` is as in `encode_text`.
        """
        scale = jnp.exp(jnp.asarray(self.params["logit_scale"], jnp.float32))
        bias = jnp.asarray(self.params.get("logit_bias", 0.0), jnp.float32).reshape(())
        text_embeds = self.encode_text(texts, truncate=truncate)  # first, as mistakes show at once
        image_embeds = self.encode_image(images)
        return np.asarray(
            similarity_logits(jnp.asarray(image_embeds), jnp.asarray(text_embeds), scale, bias)
        )

    def zero_shot_classifier(
        self,
        classnames: Iterable[str],
        templates: Templates = "openai",
        truncate: bool | None = None,
    ) -> np.ndarray:
        """Builds float32 (D, C): per class, its normalised mean of normalised prompt embeddings.

        `classnames` is an ordered iterable of at least one name, but not a single string.
        `templates` is a name in `evaluation.prompts`, a file, or texts with one `{}` each.
        `truncate` is as in `encode_text`, for prompts longer than the context.
        """
        encode_text = functools.partial(self.encode_text, truncate=truncate)
        return zero_shot_classifier(encode_text, classnames, templates)

    def classify(
        self,
        images: Any,
        classnames: Iterable[str],
        templates: Templates = "openai",
        truncate: bool | None = None,
    ) -> np.ndarray:
        """Computes float32 (N, C): softmax probabilities of the classes for each image.

        The arguments are those of `encode_image` and `zero_shot_classifier`.
        """
        classifier_DC = self.zero_shot_classifier(classnames, templates, truncate)
        cosine_NC = self.encode_image(images) @ classifier_DC
        logits_NC = self.logit_scale * cosine_NC
        return np.asarray(jax.nn.softmax(jnp.asarray(logits_NC), axis=-1))

    def generate(
        self,
        images: ImageLike | Iterable[ImageLike],
        method: str = Generation.method,
        max_length: int = Generation.max_length,
        min_length: int = Generation.min_length,
        beams: int = Generation.beams,
        beam_scores: str = Generation.beam_scores,
        top_p: float = Generation.top_p,
        top_k: int = Generation.top_k,
        temperature: float = Generation.temperature,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[str]:
        """Generates a caption for each image with a caption decoder (CoCa).

        Takes the images of `encode_image`. `method` is "beam", "greedy", "top_p" or "top_k";
        `clip_jax.models.generation.Generation` explains the settings of each. `seed` fixes the
        draws of the last two, for any batch size. Raises `UserError` for a model without a decoder
        or an invalid value.
        """
        check_decoder(self.config)
        chunks = self._image_chunks(images, batch_size)
        seed = whole_number(seed, "seed", *SEEDS)
        settings = generation_settings(
            self.config,
            self.tokenizer,
            method=method,
            max_length=max_length,
            min_length=min_length,
            beams=beams,
            beam_scores=beam_scores,
            top_p=top_p,
            top_k=top_k,
            temperature=temperature,
        )
        starts = itertools.count(0, batch_size)

        def captions(params: Any, rows: jax.Array, out_sharding: NamedSharding) -> jax.Array:
            first = next(starts)
            return generate_tokens(params, rows, seed, first, self.config, settings, out_sharding)

        tokens_NL = self._embed(captions, chunks, batch_size)
        return [self.tokenizer.decode(row) for row in tokens_NL]

    def save(self, directory: str | os.PathLike[str], format: str = "clip_jax") -> None:
        """Writes everything that `clip_jax.load` needs into a folder ("~" is the user's home).

        `CLIPModel.from_pretrained` and `CLIPProcessor` (or SigLIP's) read format "huggingface",
        `open_clip.create_model("local-dir:…")` reads "open_clip". Raises `UserError` for an unknown
        format, a model that the format cannot express, or a folder that holds something else, is a
        file or a URL.
        """
        folder = local_path(directory, "directory")
        if folder.is_file():
            raise UserError(f"directory={folder}: is a file; give a new or empty folder")
        try:
            tokenizer = self._own_tokenizer()
        except NoTokenizerError as error:
            logger.warning("saved without a tokenizer: %s", error)
            tokenizer = None
        save_model(folder, format, self.config, self.params, tokenizer)

    def save_adapter(self, directory: str | os.PathLike[str], format: str = "clip_jax") -> None:
        """Writes the adapter alone, see `AdaptedClip`. Raises `UserError`: there is none."""
        raise UserError(
            f"directory={directory}: there is no adapter to save; load(…, adapter=FOLDER) gives one"
        )

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
                # Each size is compiled, so only the full batch and powers of two are used.
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


def _texts(texts: Any) -> list[str]:
    """Returns one text or many as a list. Raises `UserError` for anything else."""
    return [str(texts)] if isinstance(texts, str) else text_list(texts, "texts", "a photo of a cat")
