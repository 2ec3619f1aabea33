"""The reader of compiled programs: shapes, loops, and scalar arithmetic."""

import jax
import jax.numpy as jnp
import pytest

from clip_jax.preflight.hlo.program_text import Frame, Shape, parse

# A loop as the TPU's compiler writes it: no trip count is noted, and the bound is in the state.
LOOP = """HloModule loop

%inner_body (a: (s32[], f32[4,4], s32[])) -> (s32[], f32[4,4], s32[]) {
  %a = (s32[]{:T(128)}, f32[4,4]{1,0:T(8,128)S(1)}, /*index=2*/s32[]) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %two = s32[] constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %x = f32[4,4]{1,0} get-tuple-element(%a), index=1
  %bound = s32[] get-tuple-element(%a), index=2
  ROOT %t = (s32[], f32[4,4]{1,0}, s32[]) tuple(%next, %x, %bound)
}

%inner_condition (a: (s32[], f32[4,4], s32[])) -> pred[] {
  %a = (s32[], f32[4,4], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %bound = s32[] get-tuple-element(%a), index=2
  ROOT %less = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (x: f32[4,4], n: s32[]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %zero = s32[] constant(0)
  %ten = s32[] constant(10)
  %copied = s32[] copy(%ten)
  %state = (s32[], f32[4,4]{1,0}, s32[]) tuple(%zero, %x, %copied)
  %loop = (s32[], f32[4,4]{1,0}, s32[]) while(%state), condition=%inner_condition, body=%inner_body
  %open = (s32[], f32[4,4]{1,0}, s32[]) tuple(%zero, %x, %n)
  %unknown = (s32[], f32[4,4]{1,0}, s32[]) while(%open), condition=%inner_condition, \
body=%inner_body
  ROOT %out = f32[4,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_shapes_and_attributes() -> None:
    module = parse(LOOP)
    assert module.entry.name == "main"
    state = module.entry.instructions["state"]
    assert state.shapes == (Shape("s32", ()), Shape("f32", (4, 4)), Shape("s32", ()))
    assert module.entry.instructions["loop"].called("body") == ("inner_body",)
    assert module.computations["inner_body"].root == "t"


@pytest.mark.parametrize(
    ("dtype", "dims", "size"),
    [
        ("bf16", (3, 5), 30),
        ("f32", (), 4),
        ("pred", (7,), 7),
        ("f8e4m3fn", (6,), 6),
        ("s4", (8,), 4),
    ],
)
def test_bytes(dtype: str, dims: tuple[int, ...], size: int) -> None:
    assert Shape(dtype, dims).bytes == size


def test_length_of_a_loop_without_a_noted_one() -> None:
    module = parse(LOOP)
    frame = Frame(module, module.entry)
    trips, body = frame.loop(module.entry.instructions["loop"])
    assert trips == 5  # 0, 2, 4, 6, 8
    assert body.arguments == ({2: 10},)  # the bound is known inside, the counter is not
    assert frame.loop(module.entry.instructions["unknown"])[0] is None


def test_a_text_without_entry_is_refused() -> None:
    with pytest.raises(ValueError, match="entry"):
        parse("HloModule nothing\n")


def test_noted_length_of_a_compiled_loop() -> None:
    def scan(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda carry, _: (jnp.sin(carry @ carry), None), x, None, length=7)[0]

    module = parse(jax.jit(scan).lower(jnp.ones((8, 8))).compile().as_text())
    loops = [s for s in module.entry.instructions.values() if s.opcode == "while"]
    assert [Frame(module, module.entry).loop(step)[0] for step in loops] == [7]
