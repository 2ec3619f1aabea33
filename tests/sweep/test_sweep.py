"""clip_jax.sweep, with a small script in the trainer's place."""

import csv
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from places import REPOSITORY
from waiting import wait_until

from clip_jax.errors import UserError
from clip_jax.sweep import choice, cross, grid, log_uniform, random_search, uniform, zipped
from clip_jax.sweep.plan import is_exported, plan_runs
from clip_jax.sweep.plot import write_plot
from clip_jax.sweep.table import Row, resolve_metric

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


RATES = '[{"optimizer.learning_rate": rate} for rate in (0.01, 0.1, 1.5)]'
NAMES = ["learning_rate=0.01", "learning_rate=0.1", "learning_rate=1.5"]


class Project:
    """A folder with a config file that exports a sweep, the stand-in for the trainer, and `out`."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "fake.py").write_text(FAKE_TRAINER)
        self.write_config(RATES)

    def write_config(self, settings: str) -> None:
        lines = ["from clip_jax.sweep import *", "def sweep():", f"    return {settings}"]
        (self.folder / "config.py").write_text("\n".join(lines) + "\n")

    def start(self, *flags: str, **environment: str) -> subprocess.Popen[str]:
        trainer = shlex.join([sys.executable, str(self.folder / "fake.py")])
        program = [sys.executable, str(REPOSITORY / "launch" / "sweep.py")]
        own = [f"--config={self.folder}/config.py", f"--workdir={self.folder}/out"]
        return subprocess.Popen(
            [*program, *own, f"--trainer={trainer}", *flags],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sweep(self, *flags: str, status: int = 0, **environment: str) -> str:
        """Returns the output of the sweep: stderr if it ends with status 2."""
        process = self.start(*flags, **environment)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == status, output + errors
        if status != 2:
            return output
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        return errors

    def start_waiting(self, count: int, *flags: str) -> subprocess.Popen[str]:
        """A sweep whose first runs wait for SIGTERM."""
        process = self.start(*flags, WAIT="1")
        folders = [self.folder / "out" / name for name in NAMES[:count]]
        wait_until(lambda: all((folder / "ready").exists() for folder in folders))
        return process

    def starts(self, name: str) -> list:
        """[process, flags, GPUs] of each start of a run."""
        path = self.folder / "out" / name / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def counts(self) -> list[int]:
        return [len(self.starts(name)) for name in NAMES]

    @property
    def states(self) -> list[str]:
        paths = [self.folder / "out" / name / "sweep_run.json" for name in NAMES]
        return [json.loads(path.read_text())["state"] if path.exists() else "" for path in paths]


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


COLUMNS = ("loss", "t/d/r@1", "t/d/r@5", "t/e/r@5", "u/r@1")


def test_grid_and_cross_vary_the_last_key_fastest():
    expected = [{"a.b": number, "c": letter} for number in (1, 2) for letter in "xy"]
    assert grid(**{"a.b": [1, 2], "c": ["x", "y"]}) == expected
    assert cross(grid(**{"a.b": [1, 2]}), grid(c=["x", "y"])) == expected
    assert zipped(a=[1, 2], b=[3, 4]) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]


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
        (lambda: zipped(a=[1, 2], b=[3]), "a has 2, b has 1"),
        (lambda: plan_runs([{"a": 1}, {"a": 1}], "out", "c.py"), "the same run twice: a=1"),
        (lambda: plan_runs([], "out", "c.py"), r"returned \[\]"),
        (lambda: plan_runs([{"a": 1}, {}], "out", "c.py"), "item 1 is {}"),
        (lambda: plan_runs([{"a b": 1}], "out", "c.py"), "has the key 'a b'"),
        (lambda: plan_runs([{"a": {"b": 1}}], "out", "c.py"), "has a={'b': 1}"),
        (lambda: resolve_metric("r@11", COLUMNS), "r@11: no run has it; did you mean u/r@1"),
        (lambda: resolve_metric("r@1", COLUMNS), "could be any of t/d/r@1, u/r@1; give one"),
        (lambda: resolve_metric("t/r@5", COLUMNS), "could be any of t/d/r@5, t/e/r@5; give one"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_a_metric_may_be_named_by_its_end_or_without_the_data_set():
    names = ("loss", "t/d/r@1", "d/r@1", "t/r@1")
    found = [resolve_metric(name, COLUMNS) for name in names]
    assert found == ["loss", "t/d/r@1", "t/d/r@1", "t/d/r@1"]


def test_names_are_readable_and_their_own():
    settings = [
        {"optimizer.learning_rate": 1e-3, "model.image.width": 64, "model.text.width": 32},
        {"optimizer.learning_rate": 1e-5, "data.mix": True},
    ]
    assert [run.name for run in plan_runs(settings, "out/", "c.py")] == [
        "learning_rate=0.001,model.image.width=64,model.text.width=32",
        "learning_rate=1e-05,mix=True",
    ]
    alike = ["a/b", "a b", "a_b", "1", 1, 1.0, True, "True", None, "None", (1,), "x" * 300]
    alike += ["x" * 299, 0.1234567, 0.12345670001, [1], "a,key=1"]
    names = {run.name for run in plan_runs([{"key": value} for value in alike], "out", "c.py")}
    assert len(names) == len(alike)
    assert all(len(name) < 200 and "/" not in name for name in names)


@pytest.mark.parametrize(
    ("settings", "panels"),
    [
        (grid(a=[1]), 1),
        (grid(a=["p", "q"]), 1),
        (grid(a=[1, 2, 16], seed=[1, 2]), 1),
        (grid(a=[1, 2], b=["x", "y"]), 1),
        (grid(a=[1, 2, 3, 4], b=["x", "y", "z", "w"]), 1),  # a heat map
        (random_search(9, 0, a=log_uniform(1e-4, 1e-1), b=uniform(0, 1)), 2),
        (grid(a=[1, 2], b=[1, 2], c=[1, 2]), 3),
    ],
)
def test_plots(tmp_path, settings, panels):
    runs = plan_runs(settings, "out", "c.py")
    rows = [Row(run, "finished", {"loss": 1 / (n + 1)}) for n, run in enumerate(runs)]
    rows[-1].results["loss"] = float("nan")
    write_plot([*rows, Row(runs[0], "waiting", {})], ["loss", "missing"], tmp_path / "p.png", "x")
    content = (tmp_path / "p.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    assert int.from_bytes(content[16:20], "big") == 624 * panels  # its width


def test_runs_then_skips_and_leaves_table_and_plot(project):
    steps = ("--", "--config.steps=2")
    first = project.sweep("--jobs=2", "--metric=retrieval/recall_at_10", *steps)
    assert "[3 of 3 done]" in first
    assert project.states == ["finished"] * 3
    assert project.starts(NAMES[0])[0][1] == {
        "config": f"{project.folder}/config.py",
        "workdir": f"{project.folder}/out/{NAMES[0]}",
        "config.optimizer.learning_rate": "0.01",
        "config.steps": "2",
    }
    with (project.folder / "out" / "sweep.csv").open() as file:
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
    assert (project.folder / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "21.5 *" in first  # the best one is marked

    again = project.sweep(*steps)
    header = next(line for line in again.splitlines() if line.startswith("run "))
    assert header.split()[3:] == ["loss", "letters/accuracy_top1", "retrieval/recall_at_1"]
    assert project.counts == [1, 1, 1]
    printed = project.sweep("--mode=print", "--", "--config.steps=3")
    assert printed.count("--config.steps=3") == 3  # other flags than it finished with: not skipped
    table = project.sweep("--mode=table", "--metric=recall_at_10", "--metric=loss")
    assert table.splitlines()[0].split()[-2:] == ["retrieval/recall_at_10", "loss"]


@pytest.mark.slow
def test_failure_is_shown_and_retried_alone(project):
    output = project.sweep(FAIL="0.1", status=1)
    assert "failed: learning_rate=0.1" in output
    assert "the reason of the failure" in output
    assert project.states == ["finished", "failed", "finished"]
    project.sweep()
    assert project.counts == [1, 2, 1]


@pytest.mark.slow
def test_sigterm_reaches_the_runs_and_the_next_call_goes_on(project):
    process = project.start_waiting(2, "--jobs=2", "--gpus=4,5")
    assert "another sweep runs here" in project.sweep(status=2)
    process.terminate()
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGTERM
    assert "the same command goes on from here" in output
    # They exited with 0, as the trainer does after it saved, and still are not taken for finished.
    assert all((project.folder / "out" / name / "saved").exists() for name in NAMES[:2])
    assert project.states == ["started", "started", ""]
    assert {project.starts(name)[0][2] for name in NAMES[:2]} == {"4", "5"}
    project.sweep("--jobs=2", "--gpus=4,5")
    assert project.counts == [2, 2, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_killed_launcher_leaves_no_orphan(project):
    process = project.start_waiting(3, "--jobs=3")
    pids = [project.starts(name)[0][0] for name in NAMES]
    assert all(is_alive(pid) for pid in pids)
    process.kill()
    process.communicate()
    wait_until(lambda: not any(is_alive(pid) for pid in pids))
    assert all((project.folder / "out" / name / "saved").exists() for name in NAMES)


def test_printed_commands_run_in_a_shell(project):
    project.write_config(
        "[{'note': 'it is a \"$HOME\"; * \\'test\\''}, {'note': 'b', 'x': (1, 2)}]"
    )
    printed = project.sweep("--mode=print", "--", "--config.more=a b")
    subprocess.run(["bash", "-c", printed], check=True, timeout=30)
    names = [path.parent.name for path in (project.folder / "out").glob("*/starts")]
    flags = [project.starts(name)[0][1] for name in names]
    assert {f["config.note"] for f in flags} == {"it is a \"$HOME\"; * 'test'", "b"}
    assert {f.get("config.x") for f in flags} == {None, "(1, 2)"}
    assert {f["config.more"] for f in flags} == {"a b"}
    after = project.sweep("--mode=print", "--", "--config.more=a b").splitlines()
    assert [line.split(":")[0] for line in after] == ["# finished", "# finished"]


def test_slurm_array_hands_over_to_slurm_script(project):
    project.sweep(FAIL="0.1", status=1)
    project.write_config(RATES.replace("1.5", "0.5"))
    folder = project.folder
    written = project.sweep("--mode=slurm", "--jobs=2", "--", "--config.note=a 'b'")
    assert written == f"sbatch {folder}/out/sweep.sbatch\n"
    script = folder / "out" / "sweep.sbatch"
    # Other trainer flags than those of the finished run: it is looked at again.
    assert "#SBATCH --array=0-2%2" in script.read_text()
    assert "#SBATCH --signal=B:TERM@120" in script.read_text()
    srun = folder / "srun"
    srun.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" >{shlex.quote(str(folder))}/called\n')
    srun.chmod(0o755)
    task = {"SLURM_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "2", "PYTHON": "python"}
    task["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", str(script)], env=os.environ | task, check=True, timeout=30)
    assert (folder / "called").read_text().splitlines()[-4:] == [
        f"--config={folder}/config.py",
        f"--workdir={folder}/out/learning_rate=0.5",
        "--config.optimizer.learning_rate=0.5",
        "--config.note=a 'b'",
    ]


ONE = "def sweep(): return [{'a': 1}]"


@pytest.mark.parametrize(
    ("config", "flags", "message"),
    [
        ("x = 1", (), "config.py: has no sweep() function"),
        ("def sweep(:", (), "config.py: cannot be run: SyntaxError"),
        ("def sweep(): return 3", (), "sweep() returned 3"),
        (None, (), "config.py: no such file"),
        (ONE, ("--jobs=0",), "--jobs=0"),
        (ONE, ("--jobs=2", "--gpus=1"), "--jobs=2: more than the 1 of --gpus"),
        (ONE, ("--mode=x",), "--mode=x"),
        (ONE, ("--mode=table",), "no such directory; run the sweep first"),
        (ONE, ("--trainer=nothing_of_this_name",), "no such program"),
        (ONE, ("--", "--config.a=2"), "the sweep itself sets"),
        (ONE, ("--workdir=fake.py",), "not a directory to write to"),
        (ONE, ("--workdir=gs://bucket/out",), "must be a local directory"),
        (ONE, ("--workdir=",), "--workdir: is missing"),
    ],
)
def test_mistakes_take_one_line(project, config, flags, message):
    (project.folder / "config.py").unlink()
    if config is not None:
        (project.folder / "config.py").write_text(config)
    assert message in project.sweep(*flags, status=2)


@pytest.mark.parametrize(("exported", "finished"), [(None, True), (20, True), (9, False)])
def test_an_extended_run_is_not_finished_by_its_older_export(exported, finished, tmp_path):
    assert not is_exported(tmp_path)
    (tmp_path / "checkpoints" / "20").mkdir(parents=True)
    (tmp_path / "checkpoints" / "20.incomplete").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"step": exported}))
    assert is_exported(tmp_path) is finished
