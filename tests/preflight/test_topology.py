"""Described, simulated and real devices; needs libtpu, as the development extra brings it."""

import importlib.util
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from tiny_preflight import needs_libtpu

from clip_jax.errors import UserError
from clip_jax.preflight.topology import GENERATIONS, find_target, known_topologies
from clip_jax.sharding import make_mesh

assert jax.device_count() == 8  # the tests' devices are there before a test asks for others


@needs_libtpu
@pytest.mark.parametrize(
    ("topology", "devices", "kind"),
    [
        ("v5e:1x1", 1, "TPU v5 lite"),
        ("v5e:2x4", 8, "TPU v5 lite"),
        ("v4:2x2x1", 4, "TPU v4"),  # a chip is one device
        ("v5p:8x8x4", 256, "TPU v5"),
        ("v5p:4x4x12", 192, "TPU v5"),
        ("v6e:16x16", 256, "TPU v6 lite"),
        ("tpu7x:2x2x1", 8, "TPU7x"),  # a chip is two
        ("3xv5e:2x2", 12, "TPU v5 lite"),
    ],
)
def test_described_slices(topology: str, devices: int, kind: str) -> None:
    target = find_target(topology)
    assert len(target.devices) == devices
    assert target.device_kind == kind
    assert target.platform == "tpu"


@needs_libtpu
def test_data_alone_runs_across_slices() -> None:
    target = find_target("2xv5e:2x2")
    mesh = make_mesh(2, 4, 1, devices=list(target.devices))
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)[:, :, 0]
    assert slices.tolist() == [[0] * 4, [1] * 4]


def test_simulated_and_local_devices() -> None:
    eight, local = find_target("cpu:8"), find_target("local")
    assert eight.devices == local.devices == tuple(jax.devices())
    assert eight.hbm_bytes == local.hbm_bytes
    assert len(find_target("cpu:2").devices) == 2


@pytest.mark.parametrize(
    "topology", ["", "v9:2x2", "v5e", "v5e:", "v5e:2xx2", "0xv5e:2x2", "cpu", "gpu:8", "v5e:2x2;ls"]
)
def test_unknown_names_list_the_known_ones(topology: str) -> None:
    with pytest.raises(UserError, match=re.escape(f"--topology={topology}: unknown")) as caught:
        find_target(topology)
    assert known_topologies() in str(caught.value)
    for generation in GENERATIONS:
        assert generation in str(caught.value)


@pytest.mark.parametrize("topology", ["v5e:3x3", "v5e:2x2x2", "v5p:2x2", "v5p:0x4x4", "v6e:32x32"])
def test_shapes_that_are_not_sold(topology: str) -> None:
    generation = GENERATIONS[topology.split(":")[0]]
    with pytest.raises(UserError, match=re.escape(", ".join(generation.shapes))):
        find_target(topology)


def test_too_many_simulated_devices() -> None:
    with pytest.raises(UserError, match="has 8 devices already"):
        find_target("cpu:16")
    with pytest.raises(UserError, match="1 to 4096"):
        find_target("cpu:0")


@pytest.mark.parametrize(
    ("system", "message"),
    [
        (sys.platform, r"pip install -e '\.\[tpu-preflight\]'"),
        ("darwin", "for Linux on x86-64 only; or use --topology=cpu:8"),
    ],
)
def test_missing_libtpu(monkeypatch: pytest.MonkeyPatch, system: str, message: str) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(sys, "platform", system)
    with pytest.raises(UserError, match=message):
        find_target("v5e:2x2")


@needs_libtpu
@pytest.mark.parametrize("name", GENERATIONS)
def test_memory_is_what_the_compiler_gives(name: str) -> None:
    generation = GENERATIONS[name]
    target = find_target(f"{name}:{generation.shapes[1]}")
    mesh = Mesh(np.array(target.devices), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.ShapeDtypeStruct((len(target.devices) << 30, 64), jnp.float32, sharding=rows)
    with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED") as caught:
        jax.jit(jnp.sum).lower(x).compile()
    assert f"({generation.hbm_gib}G)" in str(caught.value)


@needs_libtpu
@pytest.mark.slow
def test_processes_compile_for_a_tpu_side_by_side() -> None:
    program = """
import jax, jax.numpy as jnp
from jax.sharding import SingleDeviceSharding
from clip_jax.preflight.topology import find_target
place = SingleDeviceSharding(find_target("v5e:2x2").devices[0])
x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=place)
print(jax.jit(lambda x: x @ x).lower(x).compile().cost_analysis()["flops"])
"""
    children = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [child.communicate(timeout=120)[0] for child in children]
    assert [float(output) for output in outputs] == [2 * 256**3] * 3
