"""`python -m clip_jax.preflight` as a person runs it."""

import json
from pathlib import Path

import pytest
from programs import assert_mistake, run_program
from tiny import write_config
from tiny_preflight import API_KEYS, needs_libtpu

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("preflight")
    return write_config(folder, model__scan_layers=True, data__path="")


@needs_libtpu
def test_program_for_a_described_tpu(config_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    result = run_program(
        "clip_jax.preflight",
        f"--config={config_file}",
        "--topology=v5e:2x2",
        f"--output={output}",
        "--noevaluation",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("fits: ")
    assert "4 × TPU v5 lite" in result.stdout
    assert "compiling the train step" in result.stderr
    report = json.loads(output.read_text(encoding="utf-8"))
    assert set(report) >= API_KEYS
    assert report["hbm_bytes_per_device"] == int(15.75 * 2**30)
    assert 0.8 < report["compiled_to_model_flops"] <= 1.05
    assert report["batch_gathers"] == []
    assert "a step by the compiler's estimate: " in result.stdout
    assert "where it goes" in result.stdout
    seconds = report["estimated_step_seconds"]
    assert sum(report["estimated_shares"].values()) == pytest.approx(1)
    assert report["estimated_samples_per_second"] == pytest.approx(64 / seconds)
    assert report["estimated_utilization"] == pytest.approx(
        report["model_flops_per_step"] / (seconds * 4 * 197e12)
    )
    assert report["planned_samples_per_second"]["50%"] == pytest.approx(
        0.5 * 4 * 197e12 * 64 / report["model_flops_per_step"]
    )


@needs_libtpu
def test_program_where_a_run_does_not_fit(config_file: Path) -> None:
    result = run_program(
        "clip_jax.preflight",
        f"--config={config_file}",
        "--topology=v5e:1x1",
        f"--config.batch_size={1 << 20}",
        "--config.loss_implementation=dense",
        "--noevaluation",
    )
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("does not fit: ")
    assert "of 15.75 GiB a device" in result.stdout
    assert "--config.loss_implementation=chunked" in result.stdout
    assert "Traceback" not in result.stderr


def test_program_explains_where_parameters_lie(config_file: Path) -> None:
    result = run_program(
        "clip_jax.preflight", f"--config={config_file}", "--topology=cpu:4", "--explain_sharding"
    )
    assert result.returncode == 0, result.stderr
    assert "vision/" in result.stdout
    assert "bytes a device" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--topology=v9:2x2"], "--topology=v9:2x2: unknown; known are"),
        ([], "--topology: is missing; known are"),
        (["--topology=cpu:8", "--config.mesh.dta=2"], "did you mean 'config.mesh.data'"),
        (["--topology=cpu:8", "--config.mesh.data=3"], "must multiply to the 8 devices"),
    ],
)
def test_program_says_in_one_line_what_is_wrong(
    config_file: Path, arguments: list[str], part: str
) -> None:
    result = run_program("clip_jax.preflight", f"--config={config_file}", *arguments)
    assert_mistake(result, part)
    assert result.stderr.count("\n") == 1
