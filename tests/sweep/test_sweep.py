"""clip_jax.sweep, with a small script in the trainer's place."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import REPOSITORY

from clip_jax.errors import UserError
from clip_jax.sweep import (
    choice,
    cross,
    grid,
    log_uniform,
    random_search,
    uniform,
    zipped,
)
from clip_jax.sweep.plan import is_exported, plan_runs

ROOT = REPOSITORY
SWEEP = ROOT / "launch" / "sweep.py"

# Counts its starts, then does as the environment says: writes results, fails, or waits for SIGTERM.
FAKE_TRAINER = """
import json, os, pathlib, signal, sys, time

flags = dict(flag.lstrip("-").partition("=")[::2] for flag in sys.argv[1:])
workdir = pathlib.Path(flags["workdir"])
workdir.mkdir(parents=True, exist_ok=True)
with open(workdir / "starts", "a") as file:
    file.write(json.dumps([os.getpid(), flags, os.environ.get("CUDA_VISIBLE_DEVICES")]) + "\\n")
rate = float(flags.get("config.optimizer.learning_rate", 1))
if str(rate) == os.environ.get("FAIL"):
    print("some line\\nthe reason of the failure")
    sys.exit(3)
if "WAIT" in os.environ:
    def save(*_):
        (workdir / "saved").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, save)
    (workdir / "ready").touch()
    time.sleep(60)
with open(workdir / "metrics.jsonl", "w") as file:
    for step in (1, 2):
        print(json.dumps({"step": step, "samples_seen": 8 * step, "loss": rate / step}), file=file)
    file.write('{"step": 3, "lo')
with open(workdir / "evaluation.jsonl", "w") as file:
    for step in (1, 2):
        common = {"step": step, "dataset": "glyphs"}
        print(json.dumps({"task": "letters", "accuracy_top1": rate * step, **common}), file=file)
        recalls = {"recall_at_1": rate + step, "recall_at_10": rate + 10 * step}
        print(json.dumps({"task": "retrieval", **recalls, **common}), file=file)
        print(json.dumps({"task": "retrieval", "step": step, "dataset": "glyphs/seen",
                          "recall_at_1": rate}), file=file)
(workdir / "model").mkdir(exist_ok=True)
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "fake.py").write_text(FAKE_TRAINER)
    write_config(tmp_path, '[{"optimizer.learning_rate": rate} for rate in (0.01, 0.1, 1.5)]')
    return tmp_path


def write_config(project: Path, settings: str) -> None:
    lines = ["from clip_jax.sweep import *", "def sweep():", f"    return {settings}"]
    (project / "config.py").write_text("\n".join(lines) + "\n")


def command(project: Path, *flags: str) -> list[str]:
    trainer = shlex.join([sys.executable, str(project / "fake.py")])
    own = [f"--config={project}/config.py", f"--workdir={project}/out", f"--trainer={trainer}"]
    return [sys.executable, str(SWEEP), *own, *flags]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def sweep(project: Path, *flags: str, **more: str):
    return subprocess.run(
        command(project, *flags),
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=60,
    )


def starts(project: Path, name: str) -> int:
    path = project / "out" / name / "starts"
    return len(path.read_text().splitlines()) if path.exists() else 0


def state(project: Path, name: str) -> str:
    return json.loads((project / "out" / name / "sweep_run.json").read_text())["state"]


def wait_until(condition, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


NAMES = ["learning_rate=0.01", "learning_rate=0.1", "learning_rate=1.5"]


# The helpers.


def test_grid_and_cross_vary_the_last_key_fastest():
    expected = [
        {"a.b": 1, "c": "x"},
        {"a.b": 1, "c": "y"},
        {"a.b": 2, "c": "x"},
        {"a.b": 2, "c": "y"},
    ]
    assert grid(**{"a.b": [1, 2], "c": ["x", "y"]}) == expected
    assert cross(grid(**{"a.b": [1, 2]}), grid(c=["x", "y"])) == expected


def test_zipped_goes_side_by_side():
    assert zipped(a=[1, 2], b=[3, 4]) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    with pytest.raises(UserError, match="a has 2, b has 1"):
        zipped(a=[1, 2], b=[3])


def test_random_search_is_deterministic_and_in_range():
    ranges = {"rate": log_uniform(1e-4, 1e-2), "decay": uniform(0.0, 0.2), "size": choice([1, 2])}
    settings = random_search(200, 7, **ranges)
    assert settings == random_search(200, 7, **ranges)
    assert settings != random_search(200, 8, **ranges)
    assert settings[:50] == random_search(50, 7, **ranges)
    alone = random_search(20, 7, rate=ranges["rate"])
    assert [s["rate"] for s in alone] == [s["rate"] for s in settings[:20]]
    assert len({str(s) for s in random_search(6, 0, a=choice([1, 2]), b=choice([1, 2, 3]))}) == 6
    assert all(1e-4 <= s["rate"] <= 1e-2 and 0 <= s["decay"] <= 0.2 for s in settings)
    assert 80 < sum(s["rate"] < 1e-3 for s in settings) < 120  # half of the orders of magnitude
    assert {s["size"] for s in settings} == {1, 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_search(3, 0, size=choice([1, 2])), "only 2 different settings"),
        (lambda: random_search(3, 0, size=[1, 2]), r"size=\[1, 2\] is not a range"),
        (lambda: log_uniform(0.0, 1.0), "needs 0 < first < second"),
        (lambda: uniform(2, 1), "must be below"),
        (lambda: grid(name="text"), "name='text' is not a list"),
        (lambda: grid(name=[]), "name has no values"),
    ],
)
def test_helpers_name_the_mistake(call, message):
    with pytest.raises(UserError, match=message):
        call()


# Names.


def test_names_are_readable_and_their_own():
    settings = [
        {"optimizer.learning_rate": 1e-3, "model.image.width": 64, "model.text.width": 32},
        {"optimizer.learning_rate": 1e-5, "data.mix": True},
    ]
    assert [run.name for run in plan_runs(settings, "out/", "c.py")] == [
        "learning_rate=0.001,image.width=64,text.width=32",
        "learning_rate=1e-05,mix=True",
    ]
    alike = ["a/b", "a b", "a_b", "1", 1, 1.0, True, "True", None, "None", (1,), "x" * 300]
    alike += ["x" * 299, 0.1234567, 0.12345670001, [1], "a,key=1"]
    names = {run.name for run in plan_runs([{"key": value} for value in alike], "out", "c.py")}
    assert len(names) == len(alike)
    assert all(len(name) < 200 and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([{"a": 1}, {"a": 1}], "the same run twice: a=1"),
        ([], r"returned \[\]"),
        ([{"a": 1}, {}], "item 1 is {}"),
        ([{"a b": 1}], "has the key 'a b'"),
        ([{"a": {"b": 1}}], "has a={'b': 1}"),
    ],
)
def test_plan_refuses(settings, message):
    with pytest.raises(UserError, match=message):
        plan_runs(settings, "out", "c.py")


# The launcher.


def test_runs_then_skips_and_leaves_table_and_plot(project):
    first = sweep(project, "--jobs=2", "--metric=retrieval/recall_at_10", "--", "--config.steps=2")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "[3 of 3 done]" in first.stdout
    assert [state(project, name) for name in NAMES] == ["finished"] * 3
    record = json.loads((project / "out" / NAMES[0] / "starts").read_text())
    assert record[1] == {
        "config": f"{project}/config.py",
        "workdir": f"{project}/out/{NAMES[0]}",
        "config.optimizer.learning_rate": "0.01",
        "config.steps": "2",
    }
    with (project / "out" / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == NAMES
    assert rows[1] == {
        "run": NAMES[1],
        "state": "finished",
        "optimizer.learning_rate": "0.1",
        "step": "2",
        "samples_seen": "16",
        "loss": "0.05",
        "letters/accuracy_top1": "0.2",
        "retrieval/recall_at_1": "2.1",
        "retrieval/recall_at_10": "20.1",
        "retrieval/seen/recall_at_1": "0.1",
    }
    assert (project / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "21.5 *" in first.stdout  # the best one is marked

    again = sweep(project, "--", "--config.steps=2")
    assert again.returncode == 0, again.stderr
    header = next(line for line in again.stdout.splitlines() if line.startswith("run "))
    assert header.split()[3:] == ["loss", "letters/accuracy_top1", "retrieval/recall_at_1"]
    assert [starts(project, name) for name in NAMES] == [1, 1, 1]
    printed = sweep(project, "--mode=print", "--", "--config.steps=3").stdout
    assert printed.count("--config.steps=3") == 3  # other flags than it finished with: not skipped


@pytest.mark.slow
def test_failure_is_shown_and_retried_alone(project):
    first = sweep(project, FAIL="0.1")
    assert first.returncode == 1
    assert "failed: learning_rate=0.1" in first.stdout
    assert "the reason of the failure" in first.stdout
    assert [state(project, name) for name in NAMES] == ["finished", "failed", "finished"]
    assert sweep(project).returncode == 0
    assert [starts(project, name) for name in NAMES] == [1, 2, 1]


@pytest.mark.slow
def test_sigterm_reaches_the_runs_and_the_next_call_goes_on(project):
    process = subprocess.Popen(
        command(project, "--jobs=2", "--gpus=4,5"),
        env=environment(WAIT="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: all((project / "out" / name / "ready").exists() for name in NAMES[:2]))
    refused = sweep(project)
    assert refused.returncode == 2
    assert "another sweep runs here" in refused.stderr
    process.terminate()
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on from here" in output
    # They exited with 0, as the trainer does after it saved, and still are not taken for finished.
    assert all((project / "out" / name / "saved").exists() for name in NAMES[:2])
    assert [state(project, name) for name in NAMES[:2]] == ["started", "started"]
    gpus = {json.loads((project / "out" / n / "starts").read_text())[2] for n in NAMES[:2]}
    assert gpus == {"4", "5"}
    assert sweep(project, "--jobs=2", "--gpus=4,5").returncode == 0
    assert [starts(project, name) for name in NAMES] == [2, 2, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_killed_launcher_leaves_no_orphan(project):
    process = subprocess.Popen(
        command(project, "--jobs=3"), env=environment(WAIT="1"), stdout=subprocess.DEVNULL
    )
    wait_until(lambda: all((project / "out" / name / "ready").exists() for name in NAMES))
    pids = [json.loads((project / "out" / name / "starts").read_text())[0] for name in NAMES]
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    process.wait()
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
    assert all((project / "out" / name / "saved").exists() for name in NAMES)


def test_printed_commands_run_in_a_shell(project):
    write_config(
        project, "[{'note': 'it is a \"$HOME\"; * \\'test\\''}, {'note': 'b', 'x': (1, 2)}]"
    )
    printed = sweep(project, "--mode=print", "--", "--config.more=a b")
    assert printed.returncode == 0, printed.stderr
    subprocess.run(["bash", "-c", printed.stdout], check=True, timeout=30)
    flags = [json.loads(path.read_text())[1] for path in (project / "out").glob("*/starts")]
    assert {f["config.note"] for f in flags} == {"it is a \"$HOME\"; * 'test'", "b"}
    assert {f.get("config.x") for f in flags} == {None, "(1, 2)"}
    assert {f["config.more"] for f in flags} == {"a b"}
    after = sweep(project, "--mode=print", "--", "--config.more=a b").stdout.splitlines()
    assert [line.split(":")[0] for line in after] == ["# finished", "# finished"]


def test_slurm_array_hands_over_to_slurm_script(project):
    assert sweep(project, FAIL="0.1").returncode == 1
    write_config(project, '[{"optimizer.learning_rate": rate} for rate in (0.01, 0.1, 0.5)]')
    written = sweep(project, "--mode=slurm", "--jobs=2", "--", "--config.note=a 'b'")
    assert written.returncode == 0, written.stderr
    assert written.stdout == f"sbatch {project}/out/sweep.sbatch\n"
    script = project / "out" / "sweep.sbatch"
    # Other trainer flags than those of the finished run: it is looked at again.
    assert "#SBATCH --array=0-2%2" in script.read_text()
    assert "#SBATCH --signal=B:TERM@120" in script.read_text()
    srun = project / "srun"
    srun.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >{shlex.quote(str(project))}/called\n')
    srun.chmod(0o755)
    path = f"{project}{os.pathsep}{os.environ['PATH']}"
    task = environment(PATH=path, SLURM_JOB_ID="1", SLURM_ARRAY_TASK_ID="2", PYTHON="python")
    subprocess.run(["bash", str(script)], env=task, check=True, timeout=30)
    assert (project / "called").read_text().splitlines()[-4:] == [
        f"--config={project}/config.py",
        f"--workdir={project}/out/learning_rate=0.5",
        "--config.optimizer.learning_rate=0.5",
        "--config.note=a 'b'",
    ]


def test_table_of_two_keys_and_an_unknown_metric(project):
    write_config(project, 'grid(**{"optimizer.learning_rate": [0.1, 1.0], "batch_size": [1, 2]})')
    assert sweep(project, "--mode=table").returncode == 2  # there is nothing yet
    unknown = sweep(project, "--metric=retrieval/recall_at_11")
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("error: --metric=retrieval/recall_at_11: no run has it; did ")
    assert unknown.stderr.count("\n") == 1
    table = sweep(project, "--mode=table", "--metric=recall_at_10", "--metric=loss")
    assert table.returncode == 0, table.stderr
    assert (project / "out" / "sweep.png").stat().st_size > 10_000
    assert table.stdout.splitlines()[0].split()[-2:] == ["retrieval/recall_at_10", "loss"]


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        ("x = 1", (), "config.py: has no sweep() function"),
        ("def sweep(:", (), "config.py: cannot be run: SyntaxError"),
        ("def sweep(): return 3", (), "sweep() returned 3"),
        (None, (), "config.py: no such file"),
        ("def sweep(): return [{'a': 1}]", ("--jobs=0",), "--jobs=0: must be 1 or more"),
        ("def sweep(): return [{'a': 1}]", ("--mode=x",), "argument --mode: invalid choice"),
        ("def sweep(): return [{'a': 1}]", ("--", "--config.a=2"), "the sweep itself sets"),
        ("def sweep(): return [{'a': 1}]", ("--workdir=fake.py",), "not a directory to write to"),
    ],
)
def test_mistakes_take_one_line(project, config, flags, message):
    (project / "config.py").unlink()
    if config is not None:
        (project / "config.py").write_text(config)
    result = subprocess.run(
        command(project, *flags), env=environment(), cwd=project, capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(("exported", "finished"), [(None, True), (20, True), (9, False)])
def test_an_extended_run_is_not_finished_by_its_older_export(exported, finished, tmp_path):
    assert not is_exported(tmp_path)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    (tmp_path / "checkpoints" / "20.incomplete").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"step": exported}))
    assert is_exported(tmp_path) is finished
