"""A pre-flight's report, its advice and its search, on simulated devices; then for a TPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from conftest import REPOSITORY
from tiny import tiny_config

from clip_jax.errors import UserError
from clip_jax.models.flops import step_flops
from clip_jax.preflight import suggest as suggesting
from clip_jax.preflight.advice import advise
from clip_jax.preflight.checks import batch_gathers, whole_optimizer_leaves
from clip_jax.preflight.compile import Run, TooLargeError, plan_run
from clip_jax.preflight.counting import Collective, Cost, Shape
from clip_jax.preflight.report import Report, describe, format_report
from clip_jax.preflight.run import preflight
from clip_jax.preflight.suggest import cost, format_suggestions, suggest
from clip_jax.preflight.topology import Target, find_target
from clip_jax.training.config import build_config

API_KEYS = {
    "topology", "devices", "device_kind", "mesh", "global_batch_size", "parameters", "fits",
    "hbm_bytes_per_device", "peak_bytes_per_device", "argument_bytes_per_device",
    "temp_bytes_per_device", "model_flops_per_step", "compiled_flops_per_device", "collectives",
    "collective_bytes_per_device", "compile_seconds",
}  # fmt: skip
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel for this machine"
)


def plan(target: Target | None = None, **changes) -> Run:
    """The tiny run on eight simulated devices, its layers wide enough to be split."""
    wide = {
        "model__vision_width": 256,
        "model__vision_mlp_dim": 1024,
        "model__scan_layers": True,
        "mesh__data": 2,
        "mesh__fsdp": 4,
    }
    assert jax.device_count() == 8
    config = build_config(tiny_config(**{**wide, **changes}))
    return plan_run(config, target or find_target("cpu:8"))


@pytest.fixture(scope="module")
def report() -> Report:
    return preflight(plan())


def test_report_of_a_run_that_fits(report: Report) -> None:
    assert set(report) >= API_KEYS
    assert report == json.loads(json.dumps(report))
    assert report["fits"] is True
    assert report["reason"] is None
    assert report["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1}
    assert report["devices"] == 8
    run = plan()
    assert report["model_flops_per_step"] == step_flops(run.architecture, 64)
    # Everything is computed once: what is missing are the gradients of the inputs.
    assert 0.8 < report["compiled_to_model_flops"] <= 1.05
    assert report["peak_bytes_per_device"] == (
        report["argument_bytes_per_device"]
        + report["output_bytes_per_device"]
        + report["temp_bytes_per_device"]
    )
    assert report["loops_of_unknown_length"] == []
    assert set(report["evaluation"]) >= {"image", "text", "fits", "peak_bytes_per_device"}


def test_bytes_by_kind(report: Report) -> None:
    parameters = report["parameter_bytes"]
    assert parameters == 4 * report["parameters"]
    # Two moments, and the counts of steps.
    assert 0 <= report["optimizer_bytes"] - 2 * parameters <= 16
    assert report["batch_bytes_per_device"] == 64 // 8 * (32 * 32 * 3 + 4 * 12)
    # Most of it is in leaves that are split four ways.
    assert parameters / 4 <= report["parameter_bytes_per_device"] < 0.4 * parameters
    arguments = sum(report[f"{k}_bytes_per_device"] for k in ("parameter", "optimizer", "batch"))
    assert report["argument_bytes_per_device"] == pytest.approx(arguments, rel=1e-3)
    state = report["parameter_bytes_per_device"] + report["optimizer_bytes_per_device"]
    even = (parameters + report["optimizer_bytes"]) / 4
    assert report["state_to_even_share"] == pytest.approx(state / even)


def test_exchanges(report: Report) -> None:
    assert report["collectives"]["all-gather"] > 0
    assert report["collectives"]["all-reduce"] > 0
    assert sum(report["collective_bytes_by_kind"].values()) == report["collective_bytes_per_device"]
    assert report["batch_gathers"] == []


def test_text_of_a_report(report: Report) -> None:
    text = format_report(report)
    assert text.startswith("fits: 0.0")
    assert "mesh data 2 × fsdp 4 × tensor 1" in text
    assert "all-gathers of activations over the batch: none" in text


@pytest.mark.slow
def test_remat_is_seen_in_the_operations(report: Report) -> None:
    full = preflight(plan(model__remat="full"), evaluation=False)
    assert full["compiled_to_model_flops"] > 1.1 * report["compiled_to_model_flops"]
    assert full["evaluation"] is None


@pytest.mark.slow
def test_scanned_layers_count_as_unrolled_ones() -> None:
    layers = {"model__vision_layers": 3, "model__text_layers": 2}
    runs = [plan(model__scan_layers=scan, **layers) for scan in (True, False)]
    counts = [preflight(run, evaluation=False) for run in runs]
    scanned, unrolled = (count["compiled_flops_per_device"] for count in counts)
    assert scanned == pytest.approx(unrolled, rel=1e-3)


def test_batch_gathers_are_found() -> None:
    run = plan()

    def gather(rows: int, width: int, axis: int = 0) -> Collective:
        part = (rows // 4, width) if axis == 0 else (rows, width // 4)
        shapes = (Shape("f32", part),), (Shape("f32", (rows, width)),)
        return Collective("all-gather", *shapes, (axis,), 4, "towers")

    found = gather(32, 4 * 256)  # activations of four devices
    innocent = [gather(32, 16), gather(1024, 256), gather(256, 1024, axis=1)]
    assert batch_gathers(run, Cost(0.0, (*innocent, found))) == (found,)


def test_whole_optimizer_state_is_found() -> None:
    assert whole_optimizer_leaves(plan()) == {}
    assert whole_optimizer_leaves(plan(mesh__data=8, mesh__fsdp=1)) == {}  # nothing is split
    # An axis of three divides nothing here.
    three = Target("three", find_target("cpu:8").devices[:3], None)
    found = whole_optimizer_leaves(
        plan(three, mesh__data=1, mesh__fsdp=3, batch_size=66, model__vision_width=64)
    )
    assert all(size >= 2**18 for size in found.values())


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"mesh__data": 3}, ("mesh data=3 fsdp=4", "8 devices")),
        ({"batch_size": 60}, ("config.batch_size=60", "multiple of")),
        ({"optimizer__microbatches": 16}, ("config.batch_size=64", "16 micro-batches")),
        ({"optimizer__microbatches": 5}, ("config.optimizer.microbatches=5", "must divide")),
    ],
)
def test_mistakes_that_training_refuses_too(changes: dict, parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        plan(**changes)
    for part in parts:
        assert part in str(caught.value)


def test_vocabulary_without_data() -> None:
    assert plan().architecture.vocab_size == 400
    assert plan(tokenizer__source="clip_bpe").architecture.vocab_size == 49408
    assert plan(loss="sigmoid").architecture.logit_bias_init == -10.0
    elsewhere = plan(tokenizer__source="tokenizers/elsewhere", model__vocab_size=700)
    assert elsewhere.architecture.vocab_size == 700
    assert "'tokenizers/elsewhere' is not here; 700 ids" in elsewhere.notes[0]
    assert "steps" in plan(steps=None, epochs=3.0).notes[0]


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_told_what_to_change() -> None:
    run = plan(batch_size=4096)
    small = dataclasses.replace(run.target, hbm_bytes=40 << 20)
    report = preflight(dataclasses.replace(run, target=small), evaluation=False)
    assert report["fits"] is False
    assert "the train step needs" in report["reason"]
    advice = "\n".join(report["advice"])
    assert "--config.model.remat=full" in advice
    assert "--config.optimizer.microbatches=" in advice
    assert format_report(report).startswith("does not fit: ")


def test_advice_for_temporaries_and_for_state() -> None:
    run = plan(model__remat="full", mesh__data=-1, mesh__fsdp=1)
    found = describe(run) | {"fits": False}
    state = sum(found[f"{kind}_bytes_per_device"] for kind in ("parameter", "optimizer"))
    small = dataclasses.replace(run, target=dataclasses.replace(run.target, hbm_bytes=state))
    lines = advise(small, found | {"peak_bytes_per_device": state + (1 << 20)})
    assert lines[0].startswith("mesh: parameters and optimizer take")
    assert "--config.mesh.data=-1 --config.mesh.fsdp=2 " in lines[0]
    assert "first_moment_dtype=bfloat16" in lines[1]
    large = dataclasses.replace(run, target=dataclasses.replace(run.target, hbm_bytes=10 * state))
    lines = advise(large, found | {"peak_bytes_per_device": 25 * state})
    assert "--config.optimizer.microbatches=4 " in lines[0]
    assert "--config.batch_size=16 " in lines[1]
    assert advise(run, describe(run)) == []  # nothing is known of what it needs


def test_the_compilers_refusal_is_read() -> None:
    before = TooLargeError(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (18.50G) exceeds available HBM (15.75G)."
    )
    assert before.needed_bytes == int(18.5 * 2**30)
    after = TooLargeError(
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 21.84G of 15.75G hbm. "
        "Exceeded hbm capacity by 6.09G.\n\n  Largest program allocations in hbm:\n\n"
        '  1. Size: 512.0M\n     Operator: op_name="jit(train_step)/mlp"\n'
        "     Shape: bf16[256,197,3072]{2,1,0}\n"
    )
    assert after.needed_bytes == int(21.84 * 2**30)
    assert after.allocations == [(512 << 20, "bf16[256,197,3072]{2,1,0}", "jit(train_step)/mlp")]


REMAT_COST = {"none": 1.0, "dots": 1.05, "mlp": 1.15, "full": 1.3, "offload": 1.4}
REMAT_MEMORY = {"none": 8.0, "dots": 4.0, "mlp": 2.0, "full": 1.0, "offload": 0.9}


def pretended(run: Run, evaluation: bool = True) -> Report:
    """A pre-flight by formula: MiB of temporaries by remat, in inverse proportion to parts."""
    report = describe(run)
    remat, parts = run.architecture.remat, run.config.optimizer.microbatches
    rows = run.config.batch_size / 64
    size = 10 * REMAT_MEMORY[remat] * rows / parts * 2**20
    flops = report["model_flops_per_step"] / 8 * (REMAT_COST[remat] + (parts > 1) / 3)
    return report | {
        "fits": size <= (run.target.hbm_bytes or 0),
        "peak_bytes_per_device": int(size),
        "compiled_flops_per_device": flops,
        "compiled_to_model_flops": flops * 8 / report["model_flops_per_step"],
        "collective_bytes_by_kind": {"all-gather": run.mesh.shape["fsdp"] * 1000},
        "collective_bytes_per_device": run.mesh.shape["fsdp"] * 1000,
    }


def search(monkeypatch: pytest.MonkeyPatch, hbm_mib: int, seconds: float = 60.0, **changes) -> list:
    monkeypatch.setattr(suggesting, "preflight", pretended)
    run = plan(**changes)
    run = dataclasses.replace(
        run, target=dataclasses.replace(run.target, hbm_bytes=hbm_mib * 2**20)
    )
    return suggest(run, pretended(run), seconds)


def test_search_finds_the_least_recomputation_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = search(monkeypatch, 50)
    best = rows[0]
    assert "--config.model.remat=dots" in best["flags"]  # none takes 80 MiB
    assert [row["cost"] for row in rows] == sorted(row["cost"] for row in rows)
    assert all(row["peak_bytes_per_device"] <= 50 * 2**20 for row in rows)
    text = format_suggestions(rows)
    assert text.splitlines()[2].endswith(best["flags"])


def test_search_splits_the_batch_where_remat_is_not_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = search(monkeypatch, 12, batch_size=256)  # full remat takes 40 MiB
    assert "--config.optimizer.microbatches=" in rows[0]["flags"]
    assert rows[0]["global_batch_size"] == 256


def test_search_splits_the_state_further_where_that_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On one device's share of the state "dots" would take 41 MiB, of which 40 are temporaries."""
    state = 4 * 2**20

    def with_state(run: Run, evaluation: bool = True) -> Report:
        report = pretended(run)
        here = state // run.mesh.shape["fsdp"]
        peak = report["peak_bytes_per_device"] + here
        return report | {
            "parameter_bytes_per_device": here,
            "optimizer_bytes_per_device": 0,
            "peak_bytes_per_device": peak,
            "fits": peak <= run.target.hbm_bytes,
        }

    monkeypatch.setattr(suggesting, "preflight", with_state)
    run = plan(mesh__data=8, mesh__fsdp=1)
    run = dataclasses.replace(run, target=dataclasses.replace(run.target, hbm_bytes=43 << 20))
    rows = suggest(run, with_state(run), 60.0)
    assert "--config.mesh.fsdp=2 " in rows[0]["flags"] + " "
    assert "--config.model.remat=dots" in rows[0]["flags"]


def test_search_stops_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = search(monkeypatch, 1000, seconds=0.0)
    assert [row["flags"] for row in rows] == [""]  # the run as it is, which fits
    assert format_suggestions([]).startswith("nothing")


def test_cost_weighs_exchanges_against_arithmetic(report: Report) -> None:
    more = dict(report["collective_bytes_by_kind"])
    more["all-reduce"] = more["all-reduce"] + 1000
    extra = cost(report | {"collective_bytes_by_kind": more}) - cost(report)
    assert extra == pytest.approx(2 * 1000 * 1000 * 8 / report["model_flops_per_step"])


CONFIG = """
import sys
sys.path.insert(0, {tests!r})
from tiny import tiny_config

def get_config():
    return tiny_config(model__scan_layers=True, data__path="")
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preflight") / "tiny_run.py"
    path.write_text(CONFIG.format(tests=str(REPOSITORY / "tests")), encoding="utf-8")
    return path


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clip_jax.preflight", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)


@needs_libtpu
@pytest.mark.slow
def test_program_for_a_described_tpu(config_file: Path, tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    result = program(
        f"--config={config_file}", "--topology=v5e:2x2", f"--output={output}", "--noevaluation"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("fits: ")
    assert "4 × TPU v5 lite" in result.stdout
    assert "compiling the train step" in result.stderr
    report = json.loads(output.read_text(encoding="utf-8"))
    assert set(report) >= API_KEYS
    assert report["hbm_bytes_per_device"] == int(15.75 * 2**30)
    assert 0.8 < report["compiled_to_model_flops"] <= 1.05
    assert report["planned_samples_per_second"]["50%"] == pytest.approx(
        0.5 * 4 * 197e12 * 64 / report["model_flops_per_step"]
    )


@needs_libtpu
@pytest.mark.slow
def test_program_where_a_run_does_not_fit(config_file: Path) -> None:
    result = program(
        f"--config={config_file}",
        "--topology=v5e:1x1",
        f"--config.batch_size={1 << 20}",
        "--noevaluation",
    )
    assert result.returncode == 1, result.stderr
    assert result.stdout.startswith("does not fit: ")
    assert "of 15.75 GiB a device" in result.stdout
    assert "--config.optimizer.microbatches=" in result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_program_explains_where_parameters_lie(config_file: Path) -> None:
    result = program(f"--config={config_file}", "--topology=cpu:4", "--explain_sharding")
    assert result.returncode == 0, result.stderr
    assert "vision/" in result.stdout
    assert "bytes a device" in result.stdout


@pytest.mark.slow
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
    result = program(f"--config={config_file}", *arguments)
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert part in result.stderr
