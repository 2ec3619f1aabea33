"""Many sets for one model: finished ones are skipped, a failure is a row, the page shows all."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from benchmark_sets import COLOURS, SEEING, captioned, classified, square, write_layout
from pages import sections

from clip_jax.data.task_data import TaskData
from clip_jax.errors import UserError
from clip_jax.evaluation.comparison import differences
from clip_jax.evaluation.jobs import Job, find_disagreements, run_jobs
from clip_jax.evaluation.results import Results
from clip_jax.evaluation.suites.sets import resolve_suite
from clip_jax.report.evaluation import write_evaluation_page

OWN = """
[sets.hues]
path = "hues"
classes = 3
templates = "openai_simple"
[sets.pairs]
path = "pairs"
kind = "retrieval"
[sets.gone]
path = "gone"
"""


@pytest.fixture
def jobs(tmp_path: Path, cache: Path) -> list[Job]:
    seen = ("red", "green", "blue", "red", "blue")
    write_layout(tmp_path / "hues", classified(*seen), ["red", "green", "blue"])
    write_layout(tmp_path / "pairs", captioned("red", "green", "blue"), kind="retrieval")
    (tmp_path / "mine.toml").write_text(OWN)
    return [Job(s.kind, s.data, s) for s in resolve_suite(str(tmp_path / "mine.toml"))]


def quiet(_: str) -> None:
    pass


def test_finished_sets_are_skipped_and_a_failure_is_a_row(tmp_path: Path, jobs: list[Job]) -> None:
    said: list[str] = []
    folder = tmp_path / "results"
    assert not run_jobs("a", "a" * 64, SEEING, jobs, Results(folder), say=said.append)
    rows = {row["dataset"]: row for row in Results(folder).rows}
    assert "gone" in rows["gone"]["error"]
    assert rows["hues"]["accuracy_top1"] == 1
    assert rows["hues"]["accuracy_top1_low"] < 1 == rows["hues"]["accuracy_top1_high"]
    for key in ("model_hash", "data_hash", "prompts_hash", "settings_hash"):
        assert len(rows["hues"][key]) == 64
    said.clear()
    run_jobs("a", "a" * 64, SEEING, jobs, Results(folder), say=said.append)
    assert [line.endswith("finished before") for line in said] == [True, True, False]
    # Another model is evaluated; the first one's rows stay.
    run_jobs("b", "b" * 64, SEEING, jobs, Results(folder), say=quiet)
    assert [row["model"] for row in Results(folder).rows] == ["a"] * 3 + ["b"] * 3
    header = (folder / "results.csv").read_text().splitlines()[0].split(",")
    assert {"model", "task", "dataset", "accuracy_top1", "accuracy_top1_low", "error"} <= set(
        header
    )


def test_a_failure_is_mended_by_the_next_run(tmp_path: Path, jobs: list[Job]) -> None:
    folder = tmp_path / "results"
    run_jobs("a", "a" * 64, SEEING, jobs, Results(folder), say=quiet)
    (tmp_path / "gone" / "red").mkdir(parents=True)
    (tmp_path / "gone" / "red" / "0.png").write_bytes(square("red"))
    assert run_jobs("a", "a" * 64, SEEING, jobs, Results(folder), say=quiet)
    assert [row["dataset"] for row in Results(folder).rows] == ["hues", "pairs", "gone"]


def test_without_a_folder_a_failure_ends_it(jobs: list[Job]) -> None:
    with pytest.raises(UserError, match="gone"):
        run_jobs("a", "a" * 64, SEEING, jobs, Results(None), say=quiet)


def test_other_prompts_are_another_result(tmp_path: Path, jobs: list[Job]) -> None:
    folder = tmp_path / "results"
    hues = tmp_path / "hues"
    for templates in ("photo", "none"):
        data = TaskData(
            path=str(hues / "test"),
            templates=templates,
            classnames=str(hues / "classnames.txt"),
            label_key="cls",
        )
        run_jobs("a", "a" * 64, SEEING, [Job("zero_shot", data)], Results(folder), say=quiet)
    rows = Results(folder).rows
    assert [row["templates"] for row in rows] == ["photo", "none"]
    for row, template in zip(rows, ("a photo of a {}.", "{}"), strict=True):
        prompts = [template.format(name) for name in ("red", "green", "blue")]
        expected = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()
        assert row["prompts_hash"] == expected


def test_other_options_are_another_result(tmp_path: Path, jobs: list[Job]) -> None:
    """With the same prompts and images; the batch size is no such option."""
    folder, (job, *_) = tmp_path / "results", jobs
    for changes in ({}, {"skew_k": 7}, {"skew_k": 7, "batch_size": 2}):
        data = dataclasses.replace(job.chosen.data, **changes)  # type: ignore[union-attr]
        chosen = dataclasses.replace(job.chosen, data=data)
        run_jobs("a", "a" * 64, SEEING, [Job(job.task, data, chosen)], Results(folder), say=quiet)
    assert len(Results(folder).rows) == 2


def test_pictures_are_of_the_surest_mistakes_and_the_worst_queries(
    tmp_path: Path, jobs: list[Job]
) -> None:
    def swap(images: np.ndarray) -> np.ndarray:
        """Takes red for green, and blue, less surely, for red."""
        colours = SEEING.embed_image(images)
        seen = np.array([[0.1, 0.9, 0.1], [0.2, 0.9, 0.1], [0.7, 0.5, 0.69]])
        found = seen[colours.argmax(1)]
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    results = Results(tmp_path / "results")
    run_jobs("a", "a" * 64, dataclasses.replace(SEEING, embed_image=swap), jobs, results, say=quiet)
    hues, pairs = (results.samples(row) for row in results.rows[:2])
    wrong = np.flatnonzero(hues["labels"] != hues["predictions"])
    sure = hues["confidence"][hues["mistakes"]]
    assert sorted(hues["mistakes"]) == sorted(wrong)
    assert list(sure) == sorted(sure, reverse=True)
    assert sure[0] > sure[-1] + 1e-3
    assert hues["mistake_pictures"].shape == (len(wrong), 144, 144, 3)
    ranks = pairs["text_to_image_ranks"]
    assert list(pairs["worst_ranks"]) == sorted(ranks, reverse=True)
    assert ranks.max() > ranks.min()
    first = pairs["worst_pictures"][0]
    colour = next(name for name in ("red", "green", "blue") if name in str(pairs["worst_texts"][0]))
    assert first[72, 72].tolist() == list(COLOURS[colour])  # the query's own picture


def test_changed_labels_and_files_are_another_result(tmp_path: Path) -> None:
    """The keys and images stay; a label, or the content of the file of templates, is another."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("red", "blue"):
        (folder / f"{name}.png").write_bytes(square(name))

    def evaluate(labels: tuple[str, str], template: str) -> int:
        rows = [
            {"file_name": f"{name}.png", "class": label}
            for name, label in zip(("red", "blue"), labels, strict=True)
        ]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "templates.txt").write_text(template + "\n")
        data = TaskData(path=str(folder), templates=str(tmp_path / "templates.txt"))
        results = Results(tmp_path / "results")
        for task in ("zero_shot", "resolutions"):
            run_jobs("a", "a" * 64, SEEING, [Job(task, data)], results, say=quiet)
        return len(results.rows)

    first = evaluate(("red", "blue"), "a {}")
    assert evaluate(("red", "blue"), "a {}") == first
    assert evaluate(("blue", "red"), "a {}") == 2 * first
    assert evaluate(("blue", "red"), "the {}") == 3 * first


def test_models_of_other_samples_are_not_compared(tmp_path: Path, jobs: list[Job]) -> None:
    results = Results(tmp_path / "results")
    for model in "ab":
        run_jobs(model, model * 64, SEEING, jobs, results, say=quiet)
    assert {row["dataset"] for row in differences(results)} == {"hues", "pairs"}
    (row,) = (row for row in results.rows if (row["model"], row["dataset"]) == ("b", "hues"))
    samples = results.samples(row)
    results.add([(row, {**samples, "records": samples["records"] + 1})])
    assert {row["dataset"] for row in differences(results)} == {"pairs"}


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results\.json: is damaged .*; remove it"):
        Results(tmp_path)


def test_a_page_of_two_models(tmp_path: Path, jobs: list[Job]) -> None:
    folder = tmp_path / "results"
    blind = dataclasses.replace(
        SEEING, embed_image=lambda x: np.tile(SEEING.embed_image(x[:1]), (len(x), 1))
    )
    run_jobs("runs/a", "a" * 64, SEEING, jobs, Results(folder), say=quiet)
    run_jobs("runs/b", "b" * 64, blind, jobs, Results(folder), say=quiet)
    results = Results(folder)
    top1 = next(row for row in differences(results) if row["metric"] == "accuracy_top1")
    rows = {row["model"]: row for row in results.rows if row["dataset"] == "hues"}
    gap = rows["runs/a"]["accuracy_top1"] - rows["runs/b"]["accuracy_top1"]
    assert top1["difference"] == pytest.approx(gap)
    assert top1["difference_low"] <= gap <= top1["difference_high"]
    assert 0 < top1["p_value"] <= 1
    page = write_evaluation_page(results, find_disagreements(jobs, results)).read_text(
        encoding="utf-8"
    )
    for text in ("hues", "a − b", "gone", "Accuracy by confidence", "mistakes", "worst queries"):
        assert text in page
    assert "http://" not in page
    assert "https://" not in page
    assert json.loads((folder / "results.json").read_text())["model"] == ["runs/a", "runs/b"]


def test_a_page_of_failures_alone(tmp_path: Path, jobs: list[Job]) -> None:
    results = Results(tmp_path / "results")
    for model in "ab":
        run_jobs(model, model * 64, SEEING, jobs[-1:], results, say=quiet)
    page = write_evaluation_page(results, find_disagreements(jobs, results)).read_text("utf-8")
    assert "gone" in sections(page)["Not evaluated"]
    assert "Results" not in sections(page)
