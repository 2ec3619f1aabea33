"""`python -m clip_jax.adapt` as a person starts it: the folder, a kill, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from places import REPOSITORY
from programs import assert_mistake, run_program

import clip_jax
from clip_jax.evaluation.prompts import get_templates

pytestmark = pytest.mark.slow
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noisy squares of three colours in a folder a class: 9 to train, 6 to test, of each."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 6)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(rng.normal(colour, 25, (24, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def words(model: Path, photos: Path, workdir: Path, *more: str) -> list[str]:
    return [
        "clip_jax.adapt",
        f"--model={model}",
        f"--data={photos}/train",
        f"--test_data={photos}/test",
        f"--workdir={workdir}",
        "--templates=none",
        *more,
    ]


def test_the_folder_is_what_it_says(tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    flags = (
        "--method=full,proker",
        "--shots=1,4",
        "--seeds=2",
        "--steps=30",
        "--learning_rate=0.01",
    )
    ended = run_program(*words(tiny_run, photos, tmp_path / "run", *flags))
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [(r["method"], r["shots"], r["seed"]) for r in result["runs"]] == [
        (m, k, s) for m in ("full", "proker") for k in (1, 4) for s in (0, 1)
    ]
    best = max(r["validation"]["accuracy_top1"] for r in result["runs"])
    assert result["validation"]["accuracy_top1"] == best
    for row in result["runs"]:
        assert row["before"] == result["runs"][0]["before"]
        change = row["after"]["accuracy_top1"] - row["before"]["accuracy_top1"]
        assert row["difference"]["difference"] == pytest.approx(change)
        assert row["after"]["accuracy_top1_low"] <= row["after"]["accuracy_top1"]
    assert "<html" in (tmp_path / "run" / "report.html").read_text()
    learned = {(r["method"], r["shots"]): r["after"]["accuracy_top1"] for r in result["runs"]}
    assert learned["full", 4] > 0.9

    # The loaded model is the one that was measured.
    ended = run_program(*words(tiny_run, photos, tmp_path / "lora", "--steps=150", flags[-1]))
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / "lora" / "result.json").read_text())
    assert accuracy(tmp_path / "lora", photos) == pytest.approx(result["after"]["accuracy_top1"])
    clip, base = clip_jax.load(tmp_path / "lora"), clip_jax.load(tiny_run)
    path = next((photos / "test").glob("*/*.png"))
    assert result["trained_parameters"] == sum(
        leaf.size for leaf in clip.adaptation.adapter.values()
    )
    assert np.abs(clip.encode_image(str(path)) - base.encode_image(str(path))).max() > 1e-3


def test_methods_of_every_kind_in_one_run(tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    methods = ["cocoop", "kgcoop", "maple", "promptsrc", "clip_svd", "full_layer_decay"]
    on_features = ["linear_probe", "tip_adapter_f", "gda"]
    flags = ("--shots=2", "--steps=3", "--views=2", "--distillation=0.5", "--learning_rate=0.01")
    method = f"--method={','.join(methods + on_features)}"
    ended = run_program(*words(tiny_run, photos, tmp_path / "run", method, *flags))
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [row["method"] for row in result["runs"]] == methods + on_features
    assert accuracy(tmp_path / "run", photos) == pytest.approx(result["after"]["accuracy_top1"])


def accuracy(run: Path, photos: Path) -> float:
    """Returns the accuracy of the model that is loaded from a run, on the test images."""
    paths, names = sorted((photos / "test").glob("*/*.png")), sorted(COLOURS)
    chosen = clip_jax.load(run).classify(list(map(str, paths)), names, get_templates("none"))
    right = [names[i] == path.parent.name for i, path in zip(chosen.argmax(1), paths, strict=True)]
    return float(np.mean(right))


def test_base_and_new_classes_of_a_split_file(tiny_run: Path, tmp_path: Path) -> None:
    """Two colours learn, of the two others some are lost; and the curve from one model to the
    other."""
    rng = np.random.default_rng(0)
    split: dict[str, list[Any]] = {"train": [], "val": [], "test": []}
    for label, (name, colour) in enumerate({**COLOURS, "yellow": (200, 200, 30)}.items()):
        for number, purpose in enumerate(["train"] * 4 + ["val"] * 3 + ["test"] * 5):
            path = f"{name}_{number}.png"
            pixels = np.clip(rng.normal(colour, 25, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / path)
            split[purpose].append([path, label, name])
    (tmp_path / "split_zhou_Colours.json").write_text(json.dumps(split))
    workdir = tmp_path / "run"
    rates = "--learning_rate=1e-9,0.01"  # validation shows that the first is none
    flags = ("--method=full", "--shots=4", "--steps=40", rates, "--templates=none")
    ended = run_program(
        "clip_jax.adapt", f"--model={tiny_run}", f"--data={tmp_path}", f"--workdir={workdir}",
        f"--split_file={tmp_path}/split_zhou_Colours.json", "--classes=base", *flags,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    result = json.loads((workdir / "result.json").read_text())
    assert (result["num_classes"], result["training_images"]) == (2, 8)
    assert [row["learning_rate"] for row in result["runs"]] == [0.01]
    assert [result[x]["num_images"] for x in ("validation", "after")] == [6, 10]
    new = result["new"]
    assert [(x["num_images"], x["num_classes"]) for x in new.values()] == [(10, 2), (10, 2)]
    both = result["after"]["accuracy_top1"], new["after"]["accuracy_top1"]
    assert result["harmonic_mean"]["after"] == pytest.approx(2 / (1 / both[0] + 1 / both[1]))
    line = result["wise_ft"]
    assert [point["part"] for point in line] == [step / 10 for step in range(11)]
    assert line[0]["test"] == result["before"]["accuracy_top1"]
    assert line[-1]["test"] == result["after"]["accuracy_top1"] > line[0]["test"]
    assert line[-1]["validation"] == result["validation"]["accuracy_top1"]
    page = (workdir / "report.html").read_text()
    for words in ("WiSE-FT", "Base and new classes", "Classes before", "Right after, wrong before"):
        assert words in page


def test_killed_and_run_again(tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    flags = ("--shots=4", "--steps=450")
    command = [sys.executable, "-m", *words(tiny_run, photos, tmp_path / "killed", *flags)]
    killed = subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while not (tmp_path / "killed/runs/lora-4/checkpoints/100").exists():
        assert killed.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed" / "result.json").exists()
    again = run_program(*words(tiny_run, photos, tmp_path / "killed", *flags))
    assert again.returncode == 0, again.stderr
    assert "goes on from step" in again.stderr
    whole = run_program(*words(tiny_run, photos, tmp_path / "whole", *flags))
    assert whole.returncode == 0, whole.stderr
    one, other = (
        (tmp_path / name / "adapter" / "adapter.safetensors").read_bytes()
        for name in ("killed", "whole")
    )
    assert one == other


def test_mistakes_are_one_line(tiny_run: Path, photos: Path, tmp_path: Path) -> None:
    def said(*more: str) -> Any:
        return run_program(*words(tiny_run, photos, tmp_path / "run", "--steps=2", *more))

    assert_mistake(said("--method=lara"), "--method=lara", "choose of linear_probe, tip_adapter")
    assert_mistake(said("--shots=8"), "shots=8", "has 9 images; needed are 12")
    distilled = said("--method=proker", "--distillation=1")
    assert_mistake(distilled, "--distillation=1", "--method=proker", "accepted are lora")
    assert_mistake(said("--shots=0"), "--shots=0", "at least 1")
    assert_mistake(said("--learning_rate=1e-3,0"), "--learning_rate=1e-3,0", "above 0")
    assert_mistake(said("--classes=base"), "--classes=base", "there are 3 classes; needed are 4")
    assert_mistake(said("--split_file=x.json"), "--split_file", "leave the flags of them out")
    assert_mistake(said(f"--test_data={photos}/train"), "--test_data", "are in --data too")
    assert_mistake(said("--learning_rate=1e30"), "not finite", "--learning_rate")
    (tmp_path / "file").write_text("")
    assert_mistake(said(f"--workdir={tmp_path}/file"), "is a file")
