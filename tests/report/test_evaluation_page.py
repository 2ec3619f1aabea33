"""The page of a large evaluation: small enough to send, and whole without a network."""

import functools
from pathlib import Path

import numpy as np
import pytest
from benchmark_sets import COLOURS, SEEING
from pages import is_self_contained, pictures, sections
from pictures import encode, photo

from clip_jax.evaluation.embeddings import Embedders
from clip_jax.evaluation.jobs import Job, find_disagreements, run_jobs
from clip_jax.evaluation.results import Results
from clip_jax.evaluation.suites.sets import resolve_suite
from clip_jax.report import evaluation
from clip_jax.report.evaluation import write_evaluation_page

MEBIBYTE = 1 << 20
IMAGES = 48


def guessing(seed: int) -> Embedders:
    """A model of random parameters: some sums of pixels."""
    weights = np.random.default_rng(seed).normal(size=(192, 3))

    def embed_image(images: np.ndarray) -> np.ndarray:
        rows = (images.reshape(len(images), -1) - 127.0) @ weights
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    return Embedders(embed_image, SEEING.embed_text, SEEING.transform)


def suite(folder: Path, recognition: int, retrieval: int) -> list[Job]:
    """Sets of photos, each of which is another image."""
    lines = []
    draw = functools.cache(lambda seed: encode(photo(160, 140, seed=seed), "JPEG"))
    for number in range(recognition + retrieval):
        kind = "zero_shot" if number < recognition else "retrieval"
        lines.append(f'[sets.s{number}]\npath = "s{number}"\nkind = "{kind}"\ntemplates = "photo"')
        for index in range(IMAGES):
            colour = list(COLOURS)[index % 3]
            inside = folder / f"s{number}" / (colour if kind == "zero_shot" else "")
            inside.mkdir(parents=True, exist_ok=True)
            (inside / f"{index}.jpg").write_bytes(draw(IMAGES * (number % 4) + index))
            if kind == "retrieval":
                (inside / f"{index}.txt").write_text(f"a {colour} photo, number {index}")
    (folder / "mine.toml").write_text("\n".join(lines))
    return [Job(s.kind, s.data, s) for s in resolve_suite(str(folder / "mine.toml"))]


def page_of(folder: Path, recognition: int, retrieval: int) -> str:
    jobs, results = suite(folder, recognition, retrieval), Results(folder / "results")
    for seed in range(2):
        run_jobs(f"m{seed}", str(seed) * 64, guessing(seed), jobs, results, say=lambda _: None)
    found = find_disagreements(jobs, results)
    return write_evaluation_page(results, found).read_text(encoding="utf-8")


def test_many_sections_have_fewer_pictures(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One set has mistakes of two models and examples of two disagreements."""
    monkeypatch.setattr(evaluation, "MOST_PICTURES", 12)
    found = sections(page_of(tmp_path, 1, 0))
    galleries = [name for name in found if "mistakes" in name or "is right and" in name]
    assert len(galleries) == 4
    assert [len(pictures(found[name])) for name in galleries] == [3] * 4
    assert {"s0: confidence", "s0, m0: classes", "s0, m1: classes"} <= set(found)


@pytest.mark.slow
def test_thirty_sets_and_two_models(tmp_path: Path, cache: Path) -> None:
    page = page_of(tmp_path, 25, 5)
    assert len(page.encode()) < 5 * MEBIBYTE
    assert is_self_contained(page)
    found = sections(page)
    for number in range(30):
        assert [name for name in found if name.startswith((f"s{number}:", f"s{number},"))]
    assert len(pictures(found["s7, m0: mistakes"])) >= 2
    assert "mean R@1" in found["Differences"]
    assert "text→image R@5" in found["Other differences"]
