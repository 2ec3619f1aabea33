"""The table of pre-flights is made piece by piece, and keeps what is finished."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from absl.testing import flagsaver
from places import REPOSITORY

REPORT = {
    **{"topology": "v5e:8x8", "model": "ViT-B-32", "devices": 64, "remat": "full"},
    **{"mesh": {"data": 8, "fsdp": 8, "tensor": 1}, "global_batch_size": 32768, "microbatches": 1},
    **{f"{kind}_bytes_per_device": 2**30 for kind in ("parameter", "optimizer", "ema")},
    **{"temp_bytes_per_device": 5 * 2**30, "peak_bytes_per_device": 6 * 2**30},
    **{"hbm_bytes_per_device": int(15.75 * 2**30), "collective_bytes_per_device": 2.5e9},
    **{"compiled_to_model_flops": 1.2345, "compile_seconds": 61.4},
    **{"estimated_step_seconds": 0.6396, "estimated_utilization": 0.501},
    "estimated_samples_per_second": 51_234.5,
}


def test_finished_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    table = importlib.import_module("preflight_table")
    rows = (table.Row("a", "v5e:8x8"), table.Row("b", "v5p:8x8x4", ("--config.mesh.fsdp=8",)))
    calls = []

    def preflight(row: Any) -> dict[str, Any]:
        calls.append(row.name)
        return REPORT | {"fits": row.config == "a"}

    monkeypatch.setattr(table, "ROWS", rows)
    monkeypatch.setattr(table, "preflight", preflight)
    output = tmp_path / "preflight.md"
    for pattern, again in (("^a", False), ("", False), ("", False), ("fsdp=8$", True)):
        with flagsaver.as_parsed(rows=pattern, again=str(again), table=str(output)):
            table.main([])
    assert calls == ["a v5e:8x8", "b v5p:8x8x4 mesh.fsdp=8", "b v5p:8x8x4 mesh.fsdp=8"]
    lines = output.read_text(encoding="utf-8").splitlines()
    assert lines[-2] == (
        "| a | ViT-B-32 | v5e:8x8 (64) | 8 × 8 × 1 | 32,768 | full | 1 | 3.00 | 5.00 | "
        "6.00 of 15.75 | 1.234 × | 2.50 | 61 s | 0.640 s | 50% | 51,234 |"
    )
    assert "**does not fit**: 6.00 of 15.75" in lines[-1]
    assert list(json.loads(output.with_suffix(".json").read_text(encoding="utf-8"))) == [
        row.name for row in rows
    ]
