"""Dense, ring and chunked: one value and one gradient, on any mesh, at what price."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from test_losses import BIAS, LOSSES, SCALES, embeddings, in_float64, reference_softmax

from clip_jax import losses
from clip_jax.errors import UserError
from clip_jax.losses import IMPLEMENTATIONS, effective_implementation, sigmoid_loss, softmax_loss
from clip_jax.losses.blocks import LogSumExp
from clip_jax.preflight.hlo.counting import program_cost
from clip_jax.sharding import batch_sharding, make_mesh, replicated

MESHES = [(8, 1, 1), (2, 2, 2), (1, 1, 8)]  # others: tests/training/step/test_mesh_equality.py
FUNCTIONS: dict[str, Callable[..., jax.Array]] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
SCALARS = {"softmax": 1, "sigmoid": 2}

all_implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
both_losses = pytest.mark.parametrize("name", FUNCTIONS)


@pytest.fixture
def narrow_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 24 columns: several chunks, the last one padded, on one device and on eight."""
    monkeypatch.setattr(losses, "_columns", lambda rows: 24)


@contextlib.contextmanager
def mesh_of(shape: tuple[int, int, int]) -> Iterator[jax.sharding.Mesh]:
    mesh = make_mesh(*shape, devices=jax.devices()[: int(np.prod(shape))])
    with jax.set_mesh(mesh):
        yield mesh


def arguments(name: str, rows: int, scale: float) -> tuple[Any, ...]:
    return (*embeddings(rows), np.float32(scale), np.float32(BIAS))[: 2 + SCALARS[name]]


def value_and_gradient(name: str, implementation: str, weight: float = 1.0) -> Callable[..., Any]:
    def value(*inputs: jax.Array) -> jax.Array:
        return weight * FUNCTIONS[name](*inputs, implementation=implementation)

    return jax.jit(jax.value_and_grad(value, argnums=range(2 + SCALARS[name])))


def assert_equal(result: Any, expected: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(result[0], expected[0], rtol=tolerance)
    for gradient, other in zip(result[1], expected[1], strict=True):
        largest = np.abs(np.asarray(other)).max()
        np.testing.assert_allclose(gradient, other, rtol=0, atol=tolerance * largest)


@all_implementations
@pytest.mark.parametrize("shape", MESHES, ids=str)
@both_losses
@pytest.mark.usefixtures("narrow_blocks")
def test_equal_to_one_device_and_to_float64(
    name: str, shape: tuple[int, int, int], implementation: str
) -> None:
    one, many = value_and_gradient(name, "dense"), value_and_gradient(name, implementation)
    for scale in SCALES:
        inputs = arguments(name, 64, scale)
        expected = jax.device_get(one(*inputs))
        with mesh_of(shape) as mesh:
            split, whole = batch_sharding(mesh), replicated(mesh)
            placed = [jax.device_put(x, split if np.ndim(x) else whole) for x in inputs]
            result = many(*placed)
            assert result[1][0].sharding.is_equivalent_to(split, 2)
            assert result[1][1].sharding.is_equivalent_to(split, 2)
        result = jax.device_get(result)
        assert_equal(result, expected)
        exact = LOSSES[name][1](*in_float64(inputs))
        np.testing.assert_allclose(result[0], exact, rtol=1e-6)


@all_implementations
@both_losses
@pytest.mark.usefixtures("narrow_blocks")
@pytest.mark.parametrize("shape", [(8, 1, 1), (4, 1, 2)], ids=["37-rows-8-parts", "37-rows-4x2"])
def test_rows_that_the_devices_do_not_divide(
    name: str, shape: tuple[int, int, int], implementation: str
) -> None:
    """Nothing is split then, or over fewer devices; the result is that of one device."""
    inputs = arguments(name, 37, 10.0)
    expected = jax.device_get(value_and_gradient(name, "dense")(*inputs))
    with mesh_of(shape):
        result = jax.device_get(value_and_gradient(name, implementation)(*inputs))
    assert_equal(result, expected)


@all_implementations
@both_losses
def test_without_jit_and_times_a_weight(name: str, implementation: str) -> None:
    inputs = arguments(name, 16, 10.0)
    function = FUNCTIONS[name]
    value, gradients = value_and_gradient(name, "dense")(*inputs)
    with mesh_of((2, 2, 2)):
        eager = jax.value_and_grad(function, argnums=(0, 1))(*inputs, implementation=implementation)
        weighted = value_and_gradient(name, implementation, weight=3.0)(*inputs)
    assert_equal(jax.device_get(eager), (value, gradients[:2]))
    assert_equal(jax.device_get(weighted), (3 * value, [3 * g for g in gradients]))


@all_implementations
@both_losses
def test_half_precision_gets_gradients_of_its_own_kind(name: str, implementation: str) -> None:
    """The arithmetic is float32: only the gradients are rounded."""
    images, texts, *scalars = arguments(name, 16, 10.0)
    halves = [jnp.asarray(x, jnp.bfloat16) for x in (images, texts)]
    function = value_and_gradient(name, implementation)
    with mesh_of((8, 1, 1)):
        value, gradients = function(*halves, *scalars)
        exact, expected = function(*(x.astype(jnp.float32) for x in halves), *scalars)
    assert [g.dtype for g in gradients[:2]] == [jnp.bfloat16] * 2
    np.testing.assert_array_equal(value, exact)
    for gradient, other in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(gradient, other.astype(gradient.dtype))


def test_mesh_with_one_axis_only() -> None:
    inputs = arguments("softmax", 64, 10.0)
    expected = jax.device_get(value_and_gradient("softmax", "dense")(*inputs))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        result = value_and_gradient("softmax", "ring")(*inputs)
        assert result[1][0].sharding.spec == PartitionSpec("data")
    assert_equal(jax.device_get(result), expected)


# Products of a block, forward and backward; and which collectives run.
PRICES = {
    ("softmax", "dense"): (3, {"all-gather", "all-reduce", "reduce-scatter"}),
    ("softmax", "chunked"): (4, {"all-gather", "all-reduce", "reduce-scatter"}),
    ("softmax", "ring"): (4, {"collective-permute", "all-reduce"}),
    ("sigmoid", "dense"): (3, {"all-gather", "all-reduce", "reduce-scatter"}),
    ("sigmoid", "chunked"): (3, {"all-gather", "all-reduce", "reduce-scatter"}),
    ("sigmoid", "ring"): (3, {"collective-permute", "all-reduce"}),
}


@pytest.mark.parametrize("case", PRICES, ids="-".join)
def test_arithmetic_and_collectives(case: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product of a block is made once a device; the value alone takes one."""
    monkeypatch.setattr(losses, "_columns", lambda rows: 64)
    name, implementation = case
    products, collectives = PRICES[case]
    rows, width = 256, 64
    with mesh_of((8, 1, 1)) as mesh:
        inputs = [jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=batch_sharding(mesh))]
        inputs = [*inputs * 2, *[jax.ShapeDtypeStruct((), jnp.float32)] * SCALARS[name]]
        gradient = value_and_gradient(name, implementation).lower(*inputs).compile()
        alone = jax.jit(FUNCTIONS[name], static_argnums=len(inputs))
        value = alone.lower(*inputs, implementation).compile()
    cost = program_cost(gradient.as_text())
    product = 2 * (rows // 8) * rows * width
    assert cost.flops == products * product
    assert set(cost.collective_counts) == collectives
    assert program_cost(value.as_text()).flops == product
    if "all-gather" in collectives:
        # Forward, and for the softmax gradient once more; each carries all texts.
        gathers = 2 if name == "softmax" else 1
        assert cost.collective_bytes["all-gather"] == gathers * rows * width * 4


def test_ring_with_one_part_is_chunked() -> None:
    assert effective_implementation("ring", 2) == ("ring", None)
    for implementation in ("dense", "chunked"):
        assert effective_implementation(implementation, 1) == (implementation, None)
    name, note = effective_implementation("ring", 1)
    assert name == "chunked"
    assert note is not None
    assert "'ring'" in note
    assert "'chunked'" in note
    assert "\n" not in note


def test_unknown_implementation_is_a_mistake_of_the_user() -> None:
    inputs = arguments("softmax", 4, 1.0)
    for call in (
        lambda: softmax_loss(*inputs, implementation="chunky"),
        lambda: sigmoid_loss(*inputs, np.float32(0), implementation="chunky"),
        lambda: effective_implementation("chunky", 1),
    ):
        with pytest.raises(UserError, match="'chunky': must be one of dense, ring, chunked"):
            call()


def test_log_sum_exp_of_many_small_blocks() -> None:
    """4096 blocks, each too small to be seen beside one float32 of the size of 100."""
    blocks = np.full((4096, 1, 1), 100 - 13, np.float32)
    blocks[0] = 100
    grown, _ = jax.lax.scan(
        lambda so_far, block: (so_far.add(block, 1), None), LogSumExp.empty(1), blocks
    )
    exact = np.log1p(4095 * np.exp(-13.0))  # minus the first logit
    np.testing.assert_allclose(grown.above(jnp.float32(100)), [exact], rtol=5e-3)


@all_implementations
def test_matching_pairs_of_the_sigmoid_loss(implementation: str) -> None:
    """Where every pair is right the loss is tiny, and still right to the last digits."""
    identity = np.eye(16, dtype=np.float32)
    with mesh_of((4, 2, 1)):
        value = sigmoid_loss(identity, identity, 40.0, -20.0, implementation)
    np.testing.assert_allclose(value, 16 * np.log1p(np.exp(-20.0)), rtol=1e-6)


@all_implementations
def test_extreme_logits_stay_finite(implementation: str) -> None:
    identity = np.eye(8, dtype=np.float32)
    with mesh_of((8, 1, 1)):
        value, gradient = jax.value_and_grad(softmax_loss)(
            identity, -identity, 1000.0, implementation
        )
    np.testing.assert_allclose(value, 1000 + np.log(7), rtol=1e-6)
    assert np.isfinite(gradient).all()
    exact = reference_softmax(identity.astype(np.float64), identity.astype(np.float64), 100.0)
    assert abs(float(softmax_loss(identity, identity, 100.0, implementation)) - exact) < 1e-6
