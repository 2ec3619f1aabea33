"""What a pre-flight advises, and the settings that it finds."""

import dataclasses

import pytest
from tiny_preflight import plan

from clip_jax.preflight import suggest as suggesting
from clip_jax.preflight.advice import advise
from clip_jax.preflight.compile import Run
from clip_jax.preflight.report import Report, describe
from clip_jax.preflight.suggest import format_suggestions, suggest


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


REMAT_COST = {"none": 1.0, "dots": 1.05, "qkv": 1.15, "full": 1.3, "offload": 1.4}
REMAT_MEMORY = {"none": 8.0, "dots": 4.0, "qkv": 2.0, "full": 1.0, "offload": 0.9}


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
