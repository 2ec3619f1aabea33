"""Several processes that train one run: the same values as one process, and a common end."""

import re
import signal
import time
from pathlib import Path

import pytest
from job import SMALL, Job, assert_same_values, explicit, free_port
from PIL import Image
from safetensors.numpy import load_file
from tiny import write_config

from clip_jax.training.log.metrics import read_rows

pytestmark = pytest.mark.slow

LONG = 25  # steps of the runs that are compared
# Ours, if the training step meets it first, or jax's.
GONE = re.compile("another process of this job is gone|service detected fatal errors")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    # The word table is large enough to be split over fsdp. A low rate: once the gradient is a small
    # difference of large ones, the order of a sum shows in its sixth digit.
    path = write_config(
        tmp_path_factory.mktemp("config"), steps=100_000, batch_size=256, mesh__data=2,
        mesh__fsdp=-1, checkpoint__every_steps=5, optimizer__learning_rate=5e-5,
        optimizer__warmup_steps=1, tokenizer__vocab_size=1000, model__embed_dim=64,
        model__vision__width=64, model__vision__mlp_dim=128, model__text__width=80,
    )  # fmt: skip
    return f"--config={path}"


@pytest.fixture(scope="module")
def reference(config: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """The rows of one process with eight devices."""
    with Job(tmp_path_factory.mktemp("reference") / "run", [config]) as job:
        job.wait_for_step(LONG)
        job.signal(0, signal.SIGKILL)
        job.finish()
        return job.rows()


def test_two_processes_are_one_and_outlive_a_kill(
    config: str, reference: list[dict[str, float]], tmp_path: Path
) -> None:
    """2 × 4 devices give the metrics of 1 × 8 to 1e-6; when one is killed the other ends; and
    1 × 4 goes on from the checkpoint."""
    workdir = tmp_path / "run"
    flags = explicit(2)
    with Job(workdir, [config, "--peer_timeout=20"], flags, devices=4) as job:
        job.wait_for_checkpoint(20)
        job.signal(1, signal.SIGKILL)
        start = time.monotonic()
        codes = job.finish(seconds=60)
        assert time.monotonic() - start < 60
        assert codes[0] not in (0, 2)
        assert GONE.search(job.outputs()[0])
        assert "Traceback" not in job.outputs()[0]
        rows = job.rows()
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))  # by process 0 alone
    assert_same_values(rows, reference, range(1, 21), rtol=1e-6)
    assert reference[19]["loss"] < reference[0]["loss"] - 0.3  # it is training that is compared
    newest = max(int(path.name) for path in (workdir / "checkpoints").glob("[0-9]*"))
    with Job(workdir, [config], devices=4) as job:
        job.wait_for_step(max(LONG, newest + 1))
        assert f"resuming at step {newest}" in job.outputs()[0]
        rows = job.rows()
    assert_same_values(rows, reference, range(1, LONG + 1), rtol=1e-5)


def test_time_calls_for_a_checkpoint_on_all_and_the_coordinator_is_killed(
    config: str, tmp_path: Path
) -> None:
    flags = ["--config.checkpoint.every_steps=None", "--config.checkpoint.every_minutes=0.01"]
    common = [config, "--peer_timeout=20", *flags]
    with Job(tmp_path / "run", common, explicit(2), devices=4) as job:
        job.wait_for_checkpoint(1)
        job.signal(0, signal.SIGKILL)
        assert job.finish(seconds=60)[1] not in (0, 2)
        assert GONE.search(job.outputs()[1])
        assert "Traceback" not in job.outputs()[1]


def test_sigterm_to_one_saves_all(config: str, tmp_path: Path) -> None:
    """Started as SLURM would start them, and by it told to stop."""
    workdir = tmp_path / "run"
    slurm = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_LOCALID": "0",
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
    }
    environments = [slurm | {"SLURM_PROCID": str(index)} for index in range(2)]
    with Job(workdir, [config], [["--multihost"]] * 2, 4, environments) as job:
        job.wait_for_step(3)
        job.signal(1, signal.SIGTERM)
        assert job.finish(seconds=60) == [0, 0]
        stopped = job.rows()[-1]["step"]
        assert f"SIGTERM: saved step {stopped}" in job.outputs()[0]
        assert "saved step" not in job.outputs()[1]
    assert (workdir / "checkpoints" / str(stopped) / "params").is_dir()
    # To the end, with an evaluation that both take part in.
    tasks = "--config.evaluations=({'task': 'glyphs_validation/letters', 'every_steps': 1},)"
    flags = [config, f"--config.steps={stopped + 2}", tasks]
    with Job(workdir, flags, explicit(2), devices=4) as job:
        assert job.finish() == [0, 0], job.outputs()
        assert f"resuming at step {stopped}" in job.outputs()[0]
        assert [row["step"] for row in job.rows()] == list(range(1, stopped + 3))
    assert len(read_rows(workdir / "evaluation.jsonl")) == 2
    assert load_file(workdir / "model" / "model.safetensors")


def test_bad_data_of_one_host_ends_both(tmp_path: Path) -> None:
    """Only one of them meets the broken image; the other hears of it instead of waiting."""
    photos = tmp_path / "photos" / "thing"
    photos.mkdir(parents=True)
    for index in range(16):
        Image.new("RGB", (32, 32), (16 * index, 0, 0)).save(photos / f"{index}.png")
    (photos / "broken.png").write_bytes(b"no image")
    flags = ["--config=configs/own_images.py", f"--config.data.path={photos.parent}", *SMALL]
    flags += ["--config.data.max_bad_fraction=0.0", "--config.epochs=100.0"]
    with Job(tmp_path / "run", flags, explicit(2), devices=1) as job:
        assert job.finish() == [2, 2], job.outputs()
        reason = "records tried cannot be used"
        heard = ["of this job stopped: 1 of " in text for text in job.outputs()]
        assert sorted(heard) == [False, True]
        assert all(reason in text and "Traceback" not in text for text in job.outputs())
