"""Embeddings of a source: kept in a store, refused when they are another's, joined in ensembles."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from benchmark_sets import SEEING, square

from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.embeddings import (
    Embedders,
    EmbeddingStore,
    Ensemble,
    changed,
    data_hash,
    embed_source,
    embed_texts,
)
from clip_jax.evaluation.ensemble import METHODS, Method, Mixture, mixed_log_probabilities
from clip_jax.evaluation.opening import open_labelled
from clip_jax.images.transform import ImageTransform


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Squares in a folder a class, and a file that is no image."""
    for number, colour in enumerate(("red", "green", "blue", "red")):
        path = tmp_path / "data" / colour / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(square(colour))
    (tmp_path / "data" / "red" / "9.png").write_bytes(b"no image")
    return tmp_path / "data"


def counting(calls: list[int], **changes) -> Embedders:
    def embed(images: np.ndarray) -> np.ndarray:
        calls.append(len(images))
        return SEEING.embed_image(images)

    return dataclasses.replace(SEEING, embed_image=embed, **changes)


def test_an_image_is_embedded_once(folder: Path, tmp_path: Path) -> None:
    source = open_labelled(TaskData(path=str(folder)))
    calls: list[int] = []
    embedders = counting(calls, store=EmbeddingStore(tmp_path / "store", "m" * 64))
    first = embed_source(embedders, source, 2)
    assert sum(calls) == 4
    assert list(first.bad) == ["red/9.png"]
    again = embed_source(embedders, source, 2)
    assert sum(calls) == 4
    np.testing.assert_array_equal(again.embeds, first.embeds)
    np.testing.assert_array_equal(again.records, first.records)
    assert again.bad == first.bad
    # Another model, other pixels and another picture of the same name are other embeddings.
    other = dataclasses.replace(embedders, store=EmbeddingStore(tmp_path / "store", "n" * 64))
    embed_source(other, source, 2)
    embed_source(dataclasses.replace(embedders, transform=ImageTransform(image_size=9)), source, 2)
    (folder / "green" / "1.png").write_bytes(square("blue"))
    embed_source(embedders, open_labelled(TaskData(path=str(folder))), 2)
    assert sum(calls) == 16


def test_changed_pixels_are_kept_apart(folder: Path, tmp_path: Path) -> None:
    source = open_labelled(TaskData(path=str(folder)))
    plain = dataclasses.replace(SEEING, store=EmbeddingStore(tmp_path / "store", "m" * 64))
    swapped = changed(plain, "swapped", lambda images: images[..., ::-1])
    first, second = (embed_source(e, source, 8).embeds for e in (plain, swapped))
    np.testing.assert_allclose(second, first[:, ::-1])
    np.testing.assert_array_equal(embed_source(swapped, source, 8).embeds, second)


def test_damaged_and_foreign_files_are_refused(folder: Path, tmp_path: Path) -> None:
    source = open_labelled(TaskData(path=str(folder)))
    store = EmbeddingStore(tmp_path / "store", "m" * 64)
    embed_source(dataclasses.replace(SEEING, store=store), source, 8)
    (path,) = (tmp_path / "store").iterdir()
    key = data_hash(source, (SEEING.transform, ""))
    foreign = EmbeddingStore(tmp_path / "store", "m" * 16 + "n" * 48)
    with pytest.raises(UserError, match=r"holds embeddings of model m+ .* not of mmm"):
        foreign.read(key)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"is damaged .*; remove it"):
        store.read(key)


def test_an_embedding_that_is_not_finite_is_named(folder: Path) -> None:
    broken = dataclasses.replace(SEEING, embed_image=lambda x: np.full((len(x), 3), np.nan))
    with pytest.raises(UserError, match=r"image .*\.png is not finite"):
        embed_source(broken, open_labelled(TaskData(path=str(folder))), 8)


@pytest.mark.parametrize("method", METHODS)
def test_an_ensemble_is_the_mixture_of_its_members(folder: Path, method: Method) -> None:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((3, 5)).astype(np.float32)

    def other(embed):
        def function(items):
            found = embed(items) @ mixing
            return found / np.linalg.norm(found, axis=1, keepdims=True)

        return function

    first = dataclasses.replace(SEEING, width=3)
    second = dataclasses.replace(
        SEEING, embed_image=other(SEEING.embed_image), embed_text=other(SEEING.embed_text), width=5
    )
    mixture = Mixture(np.array([0.7, 0.3]), np.array([10.0, 20.0]))
    ensemble = Ensemble((first, second), mixture, method)
    source, texts = open_labelled(TaskData(path=str(folder))), ["red", "blue", "green"]
    images, columns = embed_source(ensemble, source, 8).embeds, embed_texts(ensemble, texts)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, rtol=1e-6)
    cosines = [
        embed_source(member, source, 8).embeds @ embed_texts(member, texts).T
        for member in (first, second)
    ]
    weights = mixture.weights * (mixture.scales if method == "logits" else 1)
    mean = np.tensordot(weights / weights.sum(), np.stack(cosines), 1)
    np.testing.assert_allclose(images @ columns.T, mean, atol=1e-6)
    expected = mixed_log_probabilities(cosines, mixture, method)
    found = ensemble.class_logits(images, columns.T)
    np.testing.assert_allclose(found, expected, atol=1e-4)
