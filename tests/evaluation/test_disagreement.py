"""Examples on which two models disagree: which ones, in which order, with their own pictures."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from benchmark_sets import COLOURS, SEEING, captioned, classified, write_layout
from pages import is_self_contained, pictures, sections, words

from clip_jax.evaluation.comparison import differences
from clip_jax.evaluation.disagreement import Disagreement
from clip_jax.evaluation.jobs import Job, find_disagreements, run_jobs
from clip_jax.evaluation.results import Results
from clip_jax.evaluation.suites.sets import resolve_suite
from clip_jax.images.transform import ImageTransform
from clip_jax.report.evaluation import write_evaluation_page

OWN = """
[sets.hues]
path = "hues"
templates = "openai_simple"
[sets.pairs]
path = "pairs"
kind = "retrieval"
"""
SEEN = ("red", "green", "blue", "red", "blue")


def confused(images: np.ndarray) -> np.ndarray:
    """Takes red for green, surely, blue for red, hardly, and green for green."""
    colours = SEEING.embed_image(images)
    seen = np.array([[0.1, 0.9, 0.1], [0.2, 0.9, 0.1], [0.7, 0.5, 0.69]])
    found = seen[colours.argmax(1)]
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


CONFUSED = dataclasses.replace(SEEING, embed_image=confused)


@pytest.fixture
def jobs(tmp_path: Path, cache: Path) -> list[Job]:
    write_layout(tmp_path / "hues", classified(*SEEN), list(COLOURS))
    write_layout(tmp_path / "pairs", captioned(*COLOURS), kind="retrieval")
    (tmp_path / "mine.toml").write_text(OWN)
    return [Job(s.kind, s.data, s) for s in resolve_suite(str(tmp_path / "mine.toml"))]


@pytest.fixture
def results(tmp_path: Path, jobs: list[Job]) -> Results:
    """Of a model that sees all, and then of one that does not."""
    found = Results(tmp_path / "results")
    run_jobs("seeing", "a" * 64, SEEING, jobs, found, say=lambda _: None)
    run_jobs("confused", "b" * 64, CONFUSED, jobs, found, say=lambda _: None)
    return found


def of_set(found: list[Disagreement], name: str) -> list[Disagreement]:
    return [each for each in found if each.better["dataset"] == name]


def test_images_that_one_gets_wrong(jobs: list[Job], results: Results) -> None:
    (hues,) = of_set(find_disagreements(jobs, results), "hues")  # the second is nowhere better
    assert (hues.better["model"], hues.worse["model"]) == ("seeing", "confused")
    assert hues.total == 4
    assert [x.text for x in hues.examples] == ["red", "red", "blue", "blue"]  # the surest first
    assert [x.worse[0] for x in hues.examples] == ["green", "green", "red", "red"]
    for example in hues.examples:
        assert example.better[0] == example.text
        assert example.picture[72, 72].tolist() == list(COLOURS[example.text])
    sure = [example.worse[1] for example in hues.examples]
    assert sure == sorted(sure, reverse=True)
    assert sure[0] > sure[-1] + 1e-3


def test_queries_of_which_one_ranks_the_picture_higher(jobs: list[Job], results: Results) -> None:
    (pairs,) = of_set(find_disagreements(jobs, results), "pairs")
    first, second = (results.samples(r) for r in results.rows if r["dataset"] == "pairs")
    behind = second["text_to_image_ranks"] - first["text_to_image_ranks"]
    assert pairs.better["model"] == "seeing"
    assert pairs.total == (behind > 0).sum() > 0
    gaps = [example.worse[1] - example.better[1] for example in pairs.examples]
    assert gaps == sorted(behind[behind > 0], reverse=True)
    for example in pairs.examples:
        colour = next(name for name in COLOURS if name in example.text)
        assert example.picture[72, 72].tolist() == list(COLOURS[colour])


def test_the_better_one_comes_second(jobs: list[Job], tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    run_jobs("confused", "b" * 64, CONFUSED, jobs, results, say=lambda _: None)
    run_jobs("seeing", "a" * 64, SEEING, jobs, results, say=lambda _: None)
    (hues,) = of_set(find_disagreements(jobs, results), "hues")
    assert (hues.better["model"], hues.total) == ("seeing", 4)


def test_rows_of_other_data_have_no_examples(
    jobs: list[Job], results: Results, tmp_path: Path
) -> None:
    """The set changes after both models were evaluated; then one of them is evaluated again."""
    write_layout(tmp_path / "hues", classified(*SEEN[::-1]), list(COLOURS))
    assert not of_set(find_disagreements(jobs, results), "hues")
    run_jobs("confused", "b" * 64, CONFUSED, jobs, results, say=lambda _: None)
    assert not of_set(find_disagreements(jobs, results), "hues")
    run_jobs("seeing", "a" * 64, SEEING, jobs, results, say=lambda _: None)
    assert of_set(find_disagreements(jobs, results), "hues")


def test_models_of_other_image_sizes_are_compared(
    jobs: list[Job], results: Results, tmp_path: Path
) -> None:
    larger = dataclasses.replace(CONFUSED, transform=ImageTransform(image_size=16))
    run_jobs("larger", "c" * 64, larger, jobs, results, say=lambda _: None)
    compared = {(row["model"], row["against"]) for row in differences(results)}
    assert ("seeing", "larger") in compared


def test_the_page_shows_them(jobs: list[Job], results: Results) -> None:
    found = find_disagreements(jobs, results)
    page = write_evaluation_page(results, found).read_text(encoding="utf-8")
    shown = sections(page)["hues: seeing is right and confused wrong"]
    assert len(pictures(shown)) == 4
    text = words(shown)
    for part in ("4 in all; the surest", "seeing: red", "confused: green", "True label red"):
        assert part in text
    text = words(sections(page)["pairs, retrieval: seeing ranks higher than confused"])
    assert "seeing: rank 1" in text
    assert "%" not in text
    assert is_self_contained(page)
    plain = write_evaluation_page(results).read_text(encoding="utf-8")
    assert "seeing is right" not in plain
