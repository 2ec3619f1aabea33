"""`python -m clip_jax.evaluate` as processes: one, two, of eight devices, killed and run again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmark_sets import COLOURS, square, write_noisy_squares
from job import explicit
from places import REPOSITORY

pytestmark = pytest.mark.slow
NOT_OF_ROWS = ("seconds",)
# Figures that show the rounding of cosines, which are multiplied to be logits.
CONFIDENCE = ("expected_calibration", "adaptive_calibration", "brier", "log_loss")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Squares in a folder a class, 15 in all."""
    root = tmp_path_factory.mktemp("photos")
    for colour in COLOURS:
        (root / colour).mkdir()
        for number in range(5):
            (root / colour / f"{number}.png").write_bytes(square(colour, (10 + number, 12)))
    return root


def start(model: Path, output: Path, *words: str, devices: int = 1) -> "subprocess.Popen[str]":
    environment = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    command = [
        *(sys.executable, "-m", "clip_jax.evaluate", f"--model={model}", f"--output={output}"),
        *words,
    ]
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    found = json.loads((folder / "results.json").read_text())["results"]
    return [{k: v for k, v in row.items() if k not in NOT_OF_ROWS} for row in found]


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in theirs.items():
            tolerance = 1e-6
            if key.startswith(CONFIDENCE):
                # The embeddings of so short a run are nearly the same: which of two neighbours is
                # nearer, or which weak penalty fits best, is rounding.
                tolerance = 0.02 if theirs["task"] in ("linear_probe", "knn") else 1e-5
            if key != "lambda":
                assert mine[key] == pytest.approx(value, abs=tolerance), key


def test_devices_and_processes_agree(tiny_run: Path, tmp_path: Path) -> None:
    tasks = ["glyphs/letters", "zero_shot", "linear_probe", "knn", "few_shot"]
    data = write_noisy_squares(tmp_path / "test", seed=0, count=10)
    train = write_noisy_squares(tmp_path / "train", seed=1, count=20)
    words = [f"--tasks={','.join(tasks)}", f"--data={data}", f"--train_data={train}"]
    words.append("--templates=photo")
    one = start(tiny_run, tmp_path / "one", *words)
    eight = start(tiny_run, tmp_path / "eight", *words, devices=8)
    for process in (one, eight):
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
    two = [start(tiny_run, tmp_path / "two", *words, *flags) for flags in explicit(2)]
    for process in two:
        said, _ = process.communicate(timeout=240)
        assert process.returncode == 0, said
    expected = rows(tmp_path / "one")
    assert [row["task"] for row in expected] == tasks + 4 * ["few_shot"]
    assert_same(rows(tmp_path / "eight"), expected)
    assert_same(rows(tmp_path / "two"), expected)


def test_killed_and_run_again(tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    tasks = "zero_shot,glyphs/letters,resolutions,glyphs/retrieval"
    words = [f"--tasks={tasks}", f"--data={photos}", "--templates=photo"]
    killed = start(tiny_run, tmp_path / "killed", *words)
    end = time.monotonic() + 240
    while not (tmp_path / "killed" / "results.json").exists():
        assert killed.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    before = rows(tmp_path / "killed")
    again = start(tiny_run, tmp_path / "killed", *words)
    said, _ = again.communicate(timeout=240)
    assert again.returncode == 0, said
    assert "zero_shot, " in said
    assert said.count("finished before") >= 1
    assert rows(tmp_path / "killed")[: len(before)] == before
    whole = start(tiny_run, tmp_path / "whole", *words)
    said, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0, said
    assert_same(rows(tmp_path / "killed"), rows(tmp_path / "whole"))


def test_models_together(tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    """The run and its export are one model by two names, so together they are it once more."""
    process = start(
        Path(f"{tiny_run},{tiny_run / 'model'}"),
        tmp_path / "out",
        *("--tasks=zero_shot", f"--data={photos}", "--templates=photo", "--ensemble=logits"),
        f"--ensemble_data={photos}",
        "--compare",
    )
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "ensemble: weights 0." in said
    one, _, together = rows(tmp_path / "out")
    assert together["model"] == "ensemble"
    assert together["accuracy_top1"] == pytest.approx(one["accuracy_top1"])
    assert len({row["model_hash"] for row in rows(tmp_path / "out")}) == 2  # of one model, and both


def test_a_set_that_fails_is_a_row_and_status_1(
    tiny_run: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(
        f'[sets.here]\npath = "{photos}"\ntemplates = "photo"\n[sets.gone]\npath = "nowhere"\n'
    )
    process = start(tiny_run, tmp_path / "out", f"--suite={tmp_path / 'mine.toml'}")
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 1, said
    here, gone = rows(tmp_path / "out")
    assert 0 <= here["accuracy_top1"] <= 1
    assert "nowhere" in gone["error"]


def test_mistakes_are_one_line(tiny_run: Path, tmp_path: Path) -> None:
    for words, message in (
        (["--suite=vtabb"], "vtab"),
        (["--tasks=zero_shot", "--data=nowhere"], "nowhere"),
        (["--tasks=glyphs/letters", "--compare"], "--compare: needs two models"),
        (["--tasks=glyphs/letters", "--ensemble=logits"], "--ensemble=logits: needs two models"),
        ([], "--tasks: is missing"),
    ):
        process = start(tiny_run, tmp_path / "out", *words)
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 2
        lines = [line for line in said.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        assert message in lines[0]
        assert "Traceback" not in said
