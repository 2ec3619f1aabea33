"""Embeddings of a source's images and texts, from which every evaluator starts.

Several processes share the work, and a store on disk remembers images, so that another metric or
other prompts cost no image pass.
"""

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np

from clip_jax.data.records import Source
from clip_jax.data.stream.evaluation_batches import evaluation_batches
from clip_jax.errors import DecodeError, UserError
from clip_jax.evaluation.ensemble import Method, Mixture, mixed_log_probabilities
from clip_jax.files.disk import replacing
from clip_jax.hosts.agreement import gather
from clip_jax.images.transform import ImageTransform

Embed = Callable[[Any], np.ndarray]
_HASHED_IMAGES = 256  # of a source, evenly spaced, whose bytes are part of its hash


@dataclass(frozen=True)
class EmbeddedImages:
    """Embeddings of the records of a source that could be decoded.

    Attributes:
      embeds: float32 (N, D), rows of length 1.
      records: int64 (N,), their numbers in the source, ascending.
      bad: key -> reason of each record that was left out.
    """

    embeds: np.ndarray
    records: np.ndarray
    bad: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EmbeddingStore:
    """Folder of embedded sources, each in a file named by the hash of model, pixels and data.

    `model_hash` is that of `Clip.fingerprint`.
    """

    folder: Path
    model_hash: str

    def read(self, data_hash: str) -> EmbeddedImages | None:
        """Returns the embeddings of a source, or None if there are none.

        Raises UserError: the file is damaged or of another model.
        """
        path = self._path(data_hash)
        if not path.is_file():
            return None
        try:
            images, facts = _read(path)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: is damaged ({error}); remove it") from error
        if facts["model_hash"] != self.model_hash or facts["data_hash"] != data_hash:
            raise UserError(
                f"{path}: holds embeddings of model {facts['model_hash']} and data "
                f"{facts['data_hash']}, not of {self.model_hash} and {data_hash}; remove it"
            )
        return images

    def write(self, data_hash: str, images: EmbeddedImages) -> None:
        """Writes the embeddings of a source, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"model_hash": self.model_hash, "data_hash": data_hash}
        with replacing(self._path(data_hash)) as aside, open(aside, "wb") as file:
            _write(file, images, facts)

    def _path(self, data_hash: str) -> Path:
        return self.folder / f"{self.model_hash[:16]}-{data_hash[:16]}.npz"


@dataclass(frozen=True)
class Embedders:
    """The functions through which an evaluation sees a model.

    With `shares` each process embeds its own part of the images and texts, on its own devices;
    otherwise `embed_image` and `embed_text` themselves run over the devices of all processes.
    """

    embed_image: Embed  # uint8 (N, S, S, 3) -> float32 (N, D), rows of length 1
    embed_text: Embed  # list[str] -> float32 (N, D), rows of length 1
    transform: ImageTransform  # anything -> uint8 (S, S, 3)
    logit_scale: float = 100.0  # by which cosines are multiplied to be logits
    width: int = 0  # D, where several models are joined
    shares: bool = False
    store: EmbeddingStore | None = None
    change: str = ""  # what else `embed_image` does than the model, see `changed`
    embed_pooled: Embed | None = None  # as `embed_image`, but without the projection

    def class_logits(self, embeds: np.ndarray, classifier: np.ndarray) -> np.ndarray:
        """(N, D), (D, C) of length 1 -> (N, C): what the softmax over classes takes."""
        return self.logit_scale * (np.asarray(embeds, np.float32) @ classifier)


@dataclass(frozen=True)
class Ensemble:
    """Several models as one, which evaluators see like one.

    An embedding is the members' side by side, each times the root of its weight, so that a cosine
    of two is the weighted mean of theirs. With "logits", a weight is multiplied by the logit scale.
    """

    members: tuple[Embedders, ...]
    mixture: Mixture
    method: Method = "similarities"

    @property
    def transform(self) -> tuple[ImageTransform, ...]:
        """The members' transforms, for hashes."""
        return tuple(member.transform for member in self.members)

    def joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """Members' embeddings M of (N, D) -> float32 (N, sum of D), rows of length 1."""
        roots = np.sqrt(self._shares()).astype(np.float32)
        return np.concatenate([r * part for r, part in zip(roots, parts, strict=True)], axis=1)

    def class_logits(self, embeds: np.ndarray, classifier: np.ndarray) -> np.ndarray:
        """(N, D), (D, C) of length 1 -> (N, C): what the softmax over classes takes."""
        cosines, start = [], 0
        for member, root in zip(self.members, np.sqrt(self._shares()), strict=True):
            part = slice(start, start + member.width)
            lengths = np.linalg.norm(classifier[part], axis=0)
            cosines.append(embeds[:, part] @ classifier[part] / (root * lengths))
            start = part.stop
        return mixed_log_probabilities(cosines, self.mixture, self.method)

    def _shares(self) -> np.ndarray:
        weights, scales = self.mixture
        shares = weights * scales if self.method == "logits" else weights
        return np.maximum(shares / shares.sum(), 1e-12)  # a root of 0 would leave no length


AnyEmbedders = Embedders | Ensemble


def changed(
    embedders: AnyEmbedders, change: str, function: Callable[[np.ndarray], np.ndarray]
) -> AnyEmbedders:
    """Returns the same model on pixels that a function changes, uint8 (B, S, S, 3) -> the same.

    `change` names the function, and its arguments, in hashes.
    """

    def of(one: Embedders) -> Embedders:
        embed = one.embed_image
        return dataclasses.replace(
            one, embed_image=lambda images: embed(function(images)), change=change
        )

    if isinstance(embedders, Ensemble):
        return dataclasses.replace(embedders, members=tuple(map(of, embedders.members)))
    return of(embedders)


def unprojected(embedders: AnyEmbedders) -> AnyEmbedders:
    """Returns the same model with features before the projection, rows of length 1, as embeddings.

    Raises UserError: they are not at hand.
    """
    if isinstance(embedders, Ensemble):
        raise UserError("features='unprojected': an ensemble has none; 'projected' is accepted")
    if embedders.embed_pooled is None:
        raise UserError("features='unprojected': training has none; 'projected' is accepted")
    return dataclasses.replace(
        embedders, embed_image=embedders.embed_pooled, change="unprojected", embed_pooled=None
    )


def embed_source(embedders: AnyEmbedders, source: Source, batch_size: int) -> EmbeddedImages:
    """Embeds every decodable image of a source once, or finds it in the store.

    Raises UserError: no image can be decoded, or an embedding is not finite.
    """
    if isinstance(embedders, Ensemble):
        parts = [embed_source(member, source, batch_size) for member in embedders.members]
        common = functools.reduce(np.intersect1d, [part.records for part in parts])
        rows = [part.embeds[np.isin(part.records, common)] for part in parts]
        return EmbeddedImages(embedders.joined(rows), common, parts[0].bad)
    store = embedders.store
    key = "" if store is None else data_hash(source, (embedders.transform, embedders.change))
    known = None if store is None else store.read(key)
    # A folder that only some processes see is of no use.
    if all(json.loads(seen) for seen in _gathered(embedders, json.dumps(known is not None))):
        assert known is not None
        return known
    bad: dict[str, str] = {}
    embeds, records = [], []
    numbers = _share(embedders, len(source))
    for indices, images in evaluation_batches(
        source, embedders.transform, batch_size, bad, numbers
    ):
        embeds.append(embedders.embed_image(images))
        records.append(indices)
    found = _joined(embedders, embeds, records, bad)
    if not len(found.records):
        name, reason = next(iter(found.bad.items()), ("", "there is none"))
        raise UserError(f"no image can be used; the first is {name}: {reason}")
    # A NaN compares false with everything and would count as a right answer.
    finite = np.isfinite(found.embeds).all(1)
    if not finite.all():
        name = source.key(int(found.records[int(np.argmin(finite))]))
        raise UserError(f"the embedding of image {name} is not finite")
    if store is not None and jax.process_index() == 0:
        store.write(key, found)
    return found


def embed_texts(embedders: AnyEmbedders, texts: Sequence[str]) -> np.ndarray:
    """Embeds texts, each process its share: float32 (N, D), rows of length 1."""
    if isinstance(embedders, Ensemble):
        return embedders.joined([embed_texts(member, texts) for member in embedders.members])
    mine = _share(embedders, len(texts))
    embeds = embedders.embed_text([texts[i] for i in mine])
    return _joined(embedders, [embeds], [np.asarray(mine, np.int64)], {}).embeds


def data_hash(source: Source, transform: Any) -> str:
    """Hashes what an image pass reads: keys, captions, the transform and a sample of the images.

    Of a large source, `_HASHED_IMAGES` images are read, so that the hash costs no pass; a change of
    another image alone, under its old name, goes unseen.
    """
    digest = hashlib.sha256(f"{source.fingerprint} {transform!r}".encode())
    count = min(len(source), _HASHED_IMAGES)
    for index in np.linspace(0, len(source) - 1, count).round().astype(int):
        try:
            image = source[int(index)].image
            digest.update(image if isinstance(image, bytes) else image.tobytes())
        except DecodeError as error:
            digest.update(str(error).encode())
    return digest.hexdigest()


def prompts_hash(texts: Sequence[str]) -> str:
    """Hashes texts in their order."""
    return hashlib.sha256(json.dumps(list(texts)).encode()).hexdigest()


def _share(embedders: Embedders, count: int) -> range:
    """Returns the numbers that this process embeds."""
    if not embedders.shares:
        return range(count)
    size = -(-count // jax.process_count())
    first = min(count, size * jax.process_index())
    return range(first, min(count, first + size))


def _gathered(embedders: Embedders, data: str) -> list[bytes]:
    return gather(data.encode()) if embedders.shares else [data.encode()]


def _joined(
    embedders: Embedders, embeds: list[np.ndarray], records: list[np.ndarray], bad: dict[str, str]
) -> EmbeddedImages:
    """Joins the parts of this process, and those of all processes if they share the work."""
    if not embedders.shares or jax.process_count() == 1:
        empty = np.zeros((0, 0), np.float32)
        return EmbeddedImages(
            np.concatenate(embeds) if embeds else empty,
            np.concatenate(records) if records else np.zeros(0, np.int64),
            bad,
        )
    buffer = io.BytesIO()
    here = dataclasses.replace(embedders, shares=False)
    _write(buffer, _joined(here, embeds, records, bad), {})
    parts = [_read(io.BytesIO(data))[0] for data in gather(buffer.getvalue())]
    full = [part for part in parts if len(part.records)]
    return EmbeddedImages(
        np.concatenate([part.embeds for part in full]) if full else parts[0].embeds,
        np.concatenate([part.records for part in parts]),
        {key: reason for part in parts for key, reason in part.bad.items()},
    )


def _write(file: IO[bytes], images: EmbeddedImages, facts: dict[str, str]) -> None:
    header = json.dumps({"bad": images.bad, **facts})
    np.savez(file, facts=header, embeds=images.embeds, records=images.records)


def _read(file: Any) -> tuple[EmbeddedImages, dict[str, Any]]:
    with np.load(file, allow_pickle=False) as arrays:
        facts = json.loads(str(arrays["facts"]))
        return EmbeddedImages(arrays["embeds"], arrays["records"], facts["bad"]), facts
