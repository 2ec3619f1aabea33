"""Traces, dumps of the compiled step, and the count of compilations."""

import json
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config

from clip_jax.errors import UserError
from clip_jax.training.config import build_config
from clip_jax.training.log.metrics import read_rows
from clip_jax.training.log.profile import CompileWatch, Profiling, Tracer, parse_steps
from clip_jax.training.run.loop import train
from clip_jax.training.run.opening import explain_sharding


def test_ranges_of_steps():
    assert parse_steps("10:12") == (10, 12)
    assert parse_steps("3:3") == (3, 3)
    for text in ("", "5", "5:", ":5", "7:5", "0:3", "-1:3", "1.5:2", "a:b", "1:2:3"):
        with pytest.raises(UserError, match=f"^--profile_steps={text}: must be FIRST:LAST"):
            parse_steps(text)


@pytest.mark.parametrize("steps", [(1, 4), (21, 30)])
def test_steps_that_the_run_does_not_do_are_refused(steps, tmp_path):
    with pytest.raises(UserError, match="this run does the steps 5 to 20"):
        Tracer(tmp_path, steps, first=5, last=20)


@pytest.mark.slow
def test_a_run_leaves_trace_and_program(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    config = build_config(tiny_config(mesh__data=2, mesh__fsdp=4, steps=10))
    train(config, workdir, Profiling(steps=(4, 6), dump_hlo=True))
    (trace,) = (workdir / "profile").glob("plugins/profile/*/*.xplane.pb")
    assert traced_steps(trace) == [4, 5, 6]
    text = (workdir / "hlo" / "train_step.txt").read_text()
    assert text.startswith("HloModule jit_train_step")
    assert "all-reduce" in text
    needs = json.loads((workdir / "hlo" / "train_step.json").read_text())
    assert needs["argument_bytes"] > 100_000  # 3 × 12,000 float32 parameters, and the images
    assert needs["flops"] > 1e6
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["recompilations"] for row in rows] == [0] * 10
    seconds = [row["compile_seconds"] for row in rows]
    assert 0 < seconds[0] < rows[0]["seconds"]
    assert seconds == sorted(seconds)


def traced_steps(path: Path) -> list[int]:
    """The numbers of the training steps that a trace marks as XProf reads them."""
    found = set()
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats) if event.name == "train" else {}
                if "step_num" in stats:
                    found.add(int(stats["step_num"]))
    return sorted(found)


def test_a_second_compilation_is_counted_and_told_once(caplog):
    program = jax.jit(lambda state, batch: state + batch["images"].mean())
    program.__wrapped__.__name__ = "train_step"
    with CompileWatch("train_step") as watch, caplog.at_level(logging.WARNING):
        for step, size in enumerate((8, 8, 4, 4, 2), start=1):
            batch = {"images": jax.device_put(np.ones((size, 3), np.float32))}
            program(jnp.zeros(()), batch)
            watch.called(step)
    assert watch.recompilations == 2
    assert watch.seconds > 0
    warnings = [r.getMessage() for r in caplog.records if "compiled again" in r.getMessage()]
    assert len(warnings) == 1
    assert warnings[0].startswith("step 3: ")


def test_the_table_of_shards():
    """Every leaf of a small run: as many bytes a device as XLA gives it."""
    config = build_config(
        tiny_config(mesh__data=2, mesh__fsdp=4, model__text__width=80, tokenizer__vocab_size=1000)
    )
    lines = explain_sharding(config).splitlines()
    assert lines[0] == "custom on 8 devices"
    words = next(line for line in lines if line.startswith("params/text/token_embedding"))
    assert words.split()[-2:] == ["fsdp", f"{1000 * 80 * 4 // 4:,}"]
    assert sum("text/token_embedding" in line for line in lines) == 3  # and AdamW's two moments
    assert lines[-1].endswith("mesh data 2 × fsdp 4 × tensor 1")
