"""Counts of arithmetic and exchanges, against XLA's own where that is right, and by hand."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax.preflight.hlo.counting import program_cost
from clip_jax.sharding import make_mesh


def compiled(function: Callable, *shapes: tuple[int, ...]) -> jax.stages.Compiled:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.jit(function).lower(*arguments).compile()


def convolution(**settings) -> Callable:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=names, **settings)

    return convolve


strided = convolution(window_strides=(2, 2), padding="SAME")
LOOP_FREE = {
    "matrix": (lambda a, b: a @ b, (32, 48), (48, 64)),
    "scores": (lambda q, k: jnp.einsum("bnth,bnsh->bnts", q, k), (2, 3, 7, 16), (2, 3, 7, 16)),
    "gradients": (
        jax.grad(lambda x, kernel: jnp.sum(strided(x, kernel) ** 2), argnums=(0, 1)),
        (2, 16, 16, 8),
        (3, 3, 8, 8),
    ),
    "dilated": (
        convolution(
            window_strides=(1, 1),
            padding=[(2, 3), (1, 0)],
            lhs_dilation=(2, 2),
            rhs_dilation=(1, 2),
        ),
        (2, 9, 9, 4),
        (3, 3, 4, 8),
    ),
    "grouped": (
        convolution(window_strides=(1, 1), padding="SAME", feature_group_count=8),
        (2, 9, 9, 8),
        (5, 5, 1, 8),
    ),
}


@pytest.mark.parametrize("name", LOOP_FREE)
def test_loop_free_programs_as_xla_counts_them(name: str) -> None:
    function, *shapes = LOOP_FREE[name]
    program = compiled(function, *shapes)
    assert program_cost(program.as_text()).flops == pytest.approx(
        program.cost_analysis()["flops"], rel=0.01
    )


def test_batched_product_written_as_a_convolution() -> None:
    """As the TPU's compiler does; the naive product of window and output sizes is 256 times it."""
    text = """HloModule tpu

ENTRY %main (q: bf16[64,4,77,64], k: bf16[64,4,77,64]) -> f32[64,4,77,77] {
  %q = bf16[64,4,77,64]{3,2,1,0:T(8,128)(2,1)} parameter(0)
  %k = bf16[64,4,77,64]{3,2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %c = f32[64,4,77,77]{2,3,1,0:T(8,128)} convolution(%q, %k), window={size=64x4 stride=63x3 \
lhs_dilate=64x4}, dim_labels=01bf_01oi->01bf
}
"""
    assert program_cost(text).flops == 2 * 64 * 4 * 77 * 77 * 64


def scanned(x: jax.Array, weights: jax.Array) -> jax.Array:
    return jax.lax.scan(lambda carry, w: (jnp.tanh(carry @ w), None), x, weights)[0]


def unrolled(x: jax.Array, weights: jax.Array) -> jax.Array:
    for w in weights:
        x = jnp.tanh(x @ w)
    return x


def nested(x: jax.Array, weights: jax.Array) -> jax.Array:
    x = jax.lax.scan(lambda carry, _: (scanned(carry, weights), None), x, None, length=3)[0]
    return jax.lax.cond(x[0, 0] > 0, lambda y: y, lambda y: y @ weights[0], x)


def until_small(x: jax.Array, weights: jax.Array) -> jax.Array:
    return jax.lax.while_loop(lambda y: jnp.sum(y) > 1, lambda y: y @ weights[0], x)


@pytest.mark.parametrize(
    ("function", "products", "unknown"),
    [(scanned, 6, 0), (unrolled, 6, 0), (nested, 3 * 6 + 1, 0), (until_small, 1, 1)],
)
def test_loops_count_as_often_as_they_run(function: Callable, products: int, unknown: int) -> None:
    cost = program_cost(compiled(function, (8, 16), (6, 16, 16)).as_text())
    assert cost.flops == 2 * 8 * 16 * 16 * products
    assert len(cost.unknown_loops) == unknown


def test_collectives_in_a_loop() -> None:
    mesh = make_mesh(2, 4, 1)

    def gathers(x_BD: jax.Array, weights_LDD: jax.Array) -> jax.Array:
        def layer(carry: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            whole = jax.lax.all_gather(w, "fsdp", axis=0, tiled=True)
            return jnp.tanh(carry @ whole), None

        y = jax.lax.scan(layer, x_BD, weights_LDD)[0]
        total = jax.lax.psum(jnp.sum(y, 0), ("data", "fsdp"))
        turned = jax.lax.ppermute(y, "fsdp", [(i, (i + 1) % 4) for i in range(4)])
        return turned + total

    rows = P(("data", "fsdp"))
    mapped = jax.shard_map(
        gathers, mesh=mesh, in_specs=(rows, P(None, "fsdp")), out_specs=rows, check_vma=False
    )
    x = jax.ShapeDtypeStruct((16, 32), jnp.float32, sharding=NamedSharding(mesh, rows))
    w = jax.ShapeDtypeStruct(
        (5, 32, 32), jnp.float32, sharding=NamedSharding(mesh, P(None, "fsdp"))
    )
    cost = program_cost(jax.jit(mapped).lower(x, w).compile().as_text())
    assert cost.flops == 5 * 2 * 2 * 32 * 32
    assert cost.collective_counts == {
        "all-gather": 5,
        "all-reduce": 1,
        "collective-permute": 1,
    }
    assert cost.collective_bytes == {
        "all-gather": 5 * 4 * 32 * 32,  # the gathered side
        "all-reduce": 4 * 32,
        "collective-permute": 4 * 2 * 32,
    }
    groups = {collective.kind: collective.group for collective in cost.collectives}
    assert (groups["all-gather"], groups["all-reduce"]) == (4, 8)


GATHER = (
    "f32[8,4]{1,0} all-gather(%p), channel_id=9, replica_groups={{0,1,2,3}}, dimensions={0}, "
    'frontend_attributes={chain_id="3"}'
)
ASYNC = """HloModule gpu

%wrapped (p: f32[8,4]) -> f32[2,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %rs = f32[2,4]{1,0} reduce-scatter(%p), replica_groups=[1,4]<=[4], dimensions={0}, \
to_apply=%add
}

%chained (p: f32[2,4]) -> f32[8,4] {
  %p = f32[2,4]{1,0} parameter(0)
  ROOT %g = GATHER
}

ENTRY %main (x: f32[2,4], y: f32[8,4]) -> f32[8,4] {
  %x = f32[2,4]{1,0} parameter(0)
  %y = f32[8,4]{1,0} parameter(1)
  %ag-start = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%x), channel_id=1, \
replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}, \
metadata={op_name="gather"}
  %ag-done = f32[8,4]{1,0} all-gather-done(%ag-start)
  %ar-start = f32[8,4]{1,0} all-reduce-start(%y), channel_id=2, replica_groups={{0,1},{2,3}}, \
to_apply=%add
  %ar-done = f32[8,4]{1,0} all-reduce-done(%ar-start)
  %cp-start = (f32[2,4]{1,0}, f32[2,4]{1,0}, u32[], u32[]) collective-permute-start(%x), \
source_target_pairs={{0,1},{1,0}}
  %cp-done = f32[2,4]{1,0} collective-permute-done(%cp-start)
  %rs-start = ((f32[8,4]), f32[2,4], u32[]) async-start(%y), calls=%wrapped
  %rs-done = f32[2,4]{1,0} async-done(%rs-start)
  %part-1 = f32[8,4]{1,0} fusion(%x), kind=kCustom, calls=%chained
  %part-2 = f32[8,4]{1,0} fusion(%x), kind=kCustom, calls=%chained
  ROOT %out = f32[8,4]{1,0} add(%ag-done, %ar-done)
}
""".replace("GATHER", GATHER)


def test_asynchronous_collectives_count_once() -> None:
    cost = program_cost(ASYNC)
    assert cost.collective_counts == {
        "all-gather": 2,  # one in two halves, one in a chain of fusions
        "all-reduce": 1,
        "collective-permute": 1,
        "reduce-scatter": 1,
    }
    assert cost.collective_bytes == {
        "all-gather": 2 * 128,
        "all-reduce": 128,
        "collective-permute": 32,
        "reduce-scatter": 128,
    }
    assert [c.group for c in cost.collectives] == [4, 2, 0, 4, 4]
    assert all(c.is_asynchronous for c in cost.collectives)
    assert cost.collectives[0].op_name == "gather"


HIDDEN = """HloModule tpu

%begin (p: f32[2,4]) -> (f32[8,4], u32[]) {
  %p = f32[2,4]{1,0} parameter(0)
  %g = GATHER
  ROOT %c = (f32[8,4], u32[]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%part (p: f32[2,4]) -> f32[8,4] {
  %p = f32[2,4]{1,0} parameter(0)
  ROOT %g = GATHER
}

%body (s: (s32[], f32[2,4])) -> (s32[], f32[2,4]) {
  %s = (s32[], f32[2,4]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x = f32[2,4]{1,0} get-tuple-element(%s), index=1
  %f = f32[8,4]{1,0} fusion(%x), kind=kCustom, calls=%part
  ROOT %t = (s32[], f32[2,4]) tuple(%next, %x)
}

%condition (s: (s32[], f32[2,4])) -> pred[] {
  %s = (s32[], f32[2,4]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %six = s32[] constant(6)
  ROOT %less = pred[] compare(%i, %six), direction=LT
}

ENTRY %main (x: f32[2,4]) -> f32[8,4] {
  %x = f32[2,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %b = (f32[8,4], u32[]) fusion(%x), kind=kCustom, calls=%begin
  %state = (s32[], f32[2,4]) tuple(%zero, %x)
  %loop = (s32[], f32[2,4]) while(%state), condition=%condition, body=%body
  ROOT %end = f32[8,4]{1,0} fusion(%x), kind=kCustom, calls=%part
}
""".replace("GATHER", GATHER)


def test_an_exchange_hidden_behind_a_loop_counts_once() -> None:
    """As the TPU's compiler does with the loss's gather: it begins before a loop, a part of it is
    in every round, and it ends after."""
    assert program_cost(HIDDEN).collective_counts == {"all-gather": 1}
    inside = HIDDEN.replace("%part\n  ROOT %t", "%begin\n  ROOT %t")
    assert program_cost(inside).collective_counts == {"all-gather": 7}


LIBRARY = """HloModule gpu

ENTRY %main (a: f32[LEFT], b: f32[RIGHT]) -> f32[OUT] {
  %a = f32[LEFT] parameter(0)
  %b = f32[RIGHT] parameter(1)
  %c = (f32[OUT], s8[1024]{0}) custom-call(%a, %b), window={size=3x3 pad=1_1x1_1}, \
dim_labels=b01f_01io->b01f, custom_call_target="TARGET", \
backend_config={"operation_queue_id":"0","gemm_backend_config":{"alpha_real":1,\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"]}}}
  ROOT %out = f32[OUT] get-tuple-element(%c), index=0
}
"""
IMAGES, KERNEL, FEATURES = "2,9,9,4", "3,3,4,8", "2,9,9,8"


@pytest.mark.parametrize(
    ("target", "left", "right", "out", "flops"),
    [
        ("__cublas$gemm", "5,16,8", "5,8,32", "5,16,32", 2 * 5 * 16 * 8 * 32),
        # Two of the 9 × 3 pairs of an axis are in the padding.
        ("__cudnn$convForward", IMAGES, KERNEL, FEATURES, 2 * 2 * 4 * 8 * 25 * 25),
        ("__cudnn$convBackwardInput", FEATURES, KERNEL, IMAGES, 2 * 2 * 4 * 8 * 25 * 25),
        ("__cudnn$convBackwardFilter", IMAGES, FEATURES, KERNEL, 2 * 2 * 4 * 8 * 25 * 25),
        ("Pallas", IMAGES, KERNEL, FEATURES, 0),
    ],
)
def test_products_of_a_gpu_library(
    target: str, left: str, right: str, out: str, flops: int
) -> None:
    text = LIBRARY.replace("LEFT", left).replace("RIGHT", right).replace("OUT", out)
    assert program_cost(text.replace("TARGET", target)).flops == flops
