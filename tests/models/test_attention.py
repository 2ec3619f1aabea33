"""Which attention runs where. The kernels themselves are tested by parity, and on a GPU by hand."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from clip_jax.errors import UserError
from clip_jax.models.attention import kernel


def query(dtype: Any = jnp.bfloat16, head_dim: int = 64) -> Any:
    return jax.ShapeDtypeStruct((2, 50, 12, head_dim), dtype)


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
