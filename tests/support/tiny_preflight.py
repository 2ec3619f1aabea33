"""A tiny run to pre-flight, on eight simulated devices."""

import dataclasses
import importlib.util

import jax
import pytest
from tiny import tiny_config

from clip_jax.preflight.compile import Run, plan_run
from clip_jax.preflight.topology import Target, find_target
from clip_jax.training.config import build_config

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu has no wheel for this machine"
)
API_KEYS = {
    "topology", "devices", "device_kind", "mesh", "global_batch_size", "parameters", "fits",
    "hbm_bytes_per_device", "peak_bytes_per_device", "argument_bytes_per_device",
    "temp_bytes_per_device", "model_flops_per_step", "compiled_flops_per_device", "collectives",
    "collective_bytes_per_device", "compile_seconds",
}  # fmt: skip


def plan(target: Target | None = None, hbm: int | None = None, **changes) -> Run:
    """The tiny run on eight simulated devices, its layers wide enough to be split; `hbm`: bytes of
    memory a device."""
    wide = {
        "model__vision__width": 256,
        "model__vision__mlp_dim": 1024,
        "model__scan_layers": True,
        "mesh__data": 2,
        "mesh__fsdp": 4,
    }
    assert jax.device_count() == 8
    config = build_config(tiny_config(**{**wide, **changes}))
    target = target or find_target("cpu:8")
    return plan_run(config, dataclasses.replace(target, hbm_bytes=hbm or target.hbm_bytes))
