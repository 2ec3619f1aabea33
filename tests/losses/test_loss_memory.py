"""Memory of the losses: on one device here, and of TPU chips that are only described."""

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from places import REPOSITORY

from clip_jax.losses import sigmoid_loss, softmax_loss

WIDTH = 768


def temporaries_bytes(name: str, implementation: str, rows: int) -> int:
    """Of value and gradient on one CPU device; compiled, not run."""
    function, scalars = {"softmax": (softmax_loss, 1), "sigmoid": (sigmoid_loss, 2)}[name]
    inputs = [jax.ShapeDtypeStruct((rows, WIDTH), jnp.float32)] * 2
    inputs += [jax.ShapeDtypeStruct((), jnp.float32)] * scalars

    def value(*arguments: jax.Array) -> jax.Array:
        return function(*arguments, implementation=implementation)

    compiled = jax.jit(jax.value_and_grad(value, argnums=range(len(inputs)))).lower(*inputs)
    return compiled.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_chunked_holds_131072_pairs_on_one_device(name: str) -> None:
    """Whose matrix alone would be 64 GiB."""
    assert temporaries_bytes(name, "chunked", 131072) <= 1 << 30


def test_dense_holds_one_matrix_and_little_more() -> None:
    matrix = 4 * 16384**2
    assert matrix < temporaries_bytes("softmax", "dense", 16384) < 1.2 * matrix


def described_chips(*flags: str) -> dict[str, Any]:
    """What benchmarks/loss_memory.py prints; in a process of its own, as only one may hold libtpu
    with other settings."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[tpu-preflight]'")
    script = REPOSITORY / "benchmarks" / "loss_memory.py"
    done = subprocess.run(
        [sys.executable, str(script), *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "implementation", "temporaries_mib", "blocks"),
    [("softmax", "dense", 310, 1.1), ("softmax", "ring", 60, 1.4)],
)
def test_temporaries_of_sixteen_chips(
    name: str, implementation: str, temporaries_mib: float, blocks: float
) -> None:
    """32,768 pairs of width 768, value and gradient, on each chip of a v5e-16."""
    flags = (f"--losses={name}", f"--implementations={implementation}", "--largest=0")
    [row] = described_chips(*flags)["rows"]
    assert (row["chips"], row["batch_size"]) == (16, 32768)
    assert row["temporaries_mib"] <= temporaries_mib
    assert 0.99 <= row["flops_of_a_block"] <= blocks
