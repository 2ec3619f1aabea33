"""Advice of a pre-flight, and the settings that it finds."""

import pytest
from tiny_preflight import plan

from clip_jax.preflight import suggest as suggesting
from clip_jax.preflight.advice import advise
from clip_jax.preflight.compile import Run
from clip_jax.preflight.report import Report, describe
from clip_jax.preflight.suggest import cost, format_suggestions, suggest


def test_advice_for_temporaries_and_for_state() -> None:
    changes = {"model__remat": "full", "mesh__data": -1, "mesh__fsdp": 1}
    found = describe(plan(**changes)) | {"fits": False}
    state = sum(found[f"{kind}_bytes_per_device"] for kind in ("parameter", "optimizer"))
    full = found | {"peak_bytes_per_device": state + (1 << 20)}
    lines = advise(plan(hbm=state, **changes), full)
    assert lines[0].startswith("mesh: parameters and optimizer take")
    assert "--config.mesh.data=-1 --config.mesh.fsdp=2 " in lines[0]
    assert "first_moment_dtype=bfloat16" in lines[1]
    large = found | {"peak_bytes_per_device": 25 * state}
    lines = advise(plan(hbm=10 * state, **changes), large)
    assert "--config.optimizer.microbatches=4 " in lines[0]
    assert "--config.batch_size=16 " in lines[1]
    assert advise(plan(), describe(plan())) == []  # nothing is known of what it needs


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


def search(
    monkeypatch: pytest.MonkeyPatch, hbm: int, state: int = 0, seconds: float = 60, **changes
) -> list:
    """The suggestions for a device of `hbm` MiB, with `state` MiB to split."""

    def with_state(run: Run, evaluation: bool = True) -> Report:
        report = pretended(run)
        here = (state << 20) // run.mesh.shape["fsdp"]
        peak = report["peak_bytes_per_device"] + here
        kinds = {"parameter": here, "optimizer": 0, "peak": peak}
        sizes = {f"{kind}_bytes_per_device": size for kind, size in kinds.items()}
        return report | sizes | {"fits": peak <= run.target.hbm_bytes}

    monkeypatch.setattr(suggesting, "preflight", with_state)
    run = plan(hbm=hbm << 20, **changes)
    rows = suggest(run, with_state(run), seconds)
    assert [row["cost"] for row in rows] == sorted(row["cost"] for row in rows)
    assert all(row["peak_bytes_per_device"] <= hbm << 20 for row in rows)
    if rows:
        assert format_suggestions(rows).splitlines()[2].endswith(rows[0]["flags"] or "(as it is)")
    return rows


@pytest.mark.parametrize(
    ("hbm", "state", "changes", "best"),
    [
        # "none" takes 80 MiB
        (50, 0, {}, {"model.remat": "dots"}),
        # full recomputation takes 40 MiB
        (12, 0, {"batch_size": 256}, {"optimizer.microbatches": "4", "model.remat": "full"}),
        # On one device's share of the state "dots" would take 56 MiB, of which 40 are temporaries.
        (50, 16, {"mesh__data": 8, "mesh__fsdp": 1}, {"model.remat": "dots", "mesh.fsdp": "2"}),
        # Three pairs a device cannot be parted.
        (2, 0, {"batch_size": 24}, {"batch_size": "8"}),
    ],
)
def test_search_finds_the_cheapest_that_fits(
    monkeypatch: pytest.MonkeyPatch, hbm: int, state: int, changes: dict, best: dict
) -> None:
    flags = search(monkeypatch, hbm, state, **changes)[0]["flags"].split()
    assert {f"--config.{key}={value}" for key, value in best.items()} <= set(flags)


def test_search_stops_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = search(monkeypatch, 1000, seconds=0)
    assert [row["flags"] for row in rows] == [""]  # the run as it is, which fits
    assert format_suggestions([]).startswith("nothing")


def test_an_estimate_of_the_time_ranks() -> None:
    assert cost({"estimated_utilization": 0.5}) == 2.0
