"""Which attention runs where. The kernels themselves are tested by parity, and on a GPU by hand."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from clip_jax.errors import UserError
from clip_jax.models.kernels.choice import choose


def query(dtype: Any = jnp.bfloat16, head_dim: int = 64) -> Any:
    return jax.ShapeDtypeStruct((2, 50, 12, head_dim), dtype)


def kernel(wanted: str, query: Any, mask: Any) -> str:
    return choose(wanted, query, query, mask)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine that says it has a Hopper GPU."""
    device = SimpleNamespace(compute_capability="9.0", device_kind="NVIDIA H200")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda *_: [device])
    return device


def test_a_cpu_has_xla() -> None:
    assert kernel("auto", query(), None) == "xla"
    with pytest.raises(UserError, match="attention='cudnn': there is no GPU, but cpu; accepted"):
        kernel("cudnn", query(), None)


def test_a_gpu_has_cudnn_where_shapes_allow(gpu: SimpleNamespace) -> None:
    assert kernel("auto", query(), None) == kernel("cudnn", query(), None) == "cudnn"
    assert kernel("xla", query(), None) == "xla"
    assert kernel("auto", query(head_dim=128), None) == "cudnn"


@pytest.mark.parametrize(
    ("wanted", "mask", "reason"),
    [
        (query(jnp.float32), None, "dtype is float32"),
        (query(head_dim=84), None, "84 wide"),
        (query(head_dim=256), None, "256 wide"),
        (query(), jnp.ones((2, 1, 50, 50), bool), "a mask"),
    ],
    ids=["float32", "odd heads", "wide heads", "mask"],
)
def test_a_gpu_has_xla_elsewhere(gpu: SimpleNamespace, wanted: Any, mask: Any, reason: str) -> None:
    assert kernel("auto", wanted, mask) == "xla"
    with pytest.raises(UserError, match=reason):
        kernel("cudnn", wanted, mask)


def test_an_old_gpu_has_xla(gpu: SimpleNamespace) -> None:
    gpu.compute_capability = "7.5"
    assert kernel("auto", query(), None) == "xla"


@pytest.fixture
def tpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A machine that says it has a TPU."""
    device = SimpleNamespace(device_kind="TPU v5 lite")
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(jax, "devices", lambda *_: [device])
    return device


def test_a_tpu_has_ours_where_shapes_allow(tpu: SimpleNamespace) -> None:
    assert kernel("auto", query(), None) == kernel("tpu", query(), None) == "tpu"
    assert kernel("auto", query(), jnp.ones((2, 1, 1, 50), bool)) == "tpu"
    assert kernel("xla", query(), None) == "xla"
    with pytest.raises(UserError, match="attention='cudnn': there is no GPU, but tpu"):
        kernel("cudnn", query(), None)


@pytest.mark.parametrize(
    ("wanted", "mask", "reason"),
    [
        (query(jnp.float32), None, "dtype is float32"),
        (query(head_dim=84), None, "84 wide"),
        (query(head_dim=24), None, "24 wide"),
        (jax.ShapeDtypeStruct((2, 1, 12, 64), jnp.bfloat16), None, "1 tokens and 1 keys"),
        (jax.ShapeDtypeStruct((2, 1025, 12, 64), jnp.bfloat16), None, "1025 tokens"),
        (query(), jnp.ones((2, 1, 50, 50), bool), "differs between queries"),
    ],
    ids=["float32", "odd heads", "narrow heads", "one token", "long", "mask"],
)
def test_a_tpu_has_xla_elsewhere(tpu: SimpleNamespace, wanted: Any, mask: Any, reason: str) -> None:
    assert kernel("auto", wanted, mask) == "xla"
    with pytest.raises(UserError, match=reason):
        kernel("tpu", wanted, mask)


def test_an_old_tpu_has_xla(tpu: SimpleNamespace) -> None:
    tpu.device_kind = "TPU v3"
    assert kernel("auto", query(), None) == "xla"
