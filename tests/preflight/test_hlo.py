"""The reader of compiled programs: shapes, loops, and scalar arithmetic."""

import pytest

from clip_jax.preflight.hlo.program_text import Shape, parse

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

%start (b: s32[]) -> (s32[], s32[]) {
  %b = s32[] parameter(0)
  %true = pred[] constant(true)
  %one = s32[] convert(%true)
  %zero = s32[] subtract(%one, %one)
  ROOT %pair = (s32[], s32[]) tuple(%zero, %b)
}

ENTRY %main (x: f32[4,4], n: s32[]) -> f32[4,4] {
  %x = f32[4,4]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %ten = s32[] constant(10)
  %copied = s32[] copy(%ten)
  %begun = (s32[], s32[]) fusion(%copied), kind=kLoop, calls=%start
  %zero = s32[] get-tuple-element(%begun), index=0
  %bound = s32[] get-tuple-element(%begun), index=1
  %state = (s32[], f32[4,4]{1,0}, s32[]) tuple(%zero, %x, %bound)
  %loop = (s32[], f32[4,4]{1,0}, s32[]) while(%state), condition=%inner_condition, body=%inner_body
  %open = (s32[], f32[4,4]{1,0}, s32[]) tuple(%zero, %x, %n)
  %unknown = (s32[], f32[4,4]{1,0}, s32[]) while(%open), condition=%inner_condition, \
body=%inner_body
  ROOT %out = f32[4,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_shapes_and_attributes() -> None:
    frame = parse(LOOP)
    assert frame.computation.name == "main"
    steps = frame.computation.instructions
    assert steps["state"].shapes == (Shape("s32", ()), Shape("f32", (4, 4)), Shape("s32", ()))
    assert steps["loop"].called("body") == ("inner_body",)
    assert frame.computations["inner_body"].root == "t"
    shapes = {("bf16", (3, 5)): 30, ("f32", ()): 4, ("f8e4m3fn", (6,)): 6, ("s4", (8,)): 4}
    assert [Shape(*shape).bytes for shape in shapes] == list(shapes.values())
    with pytest.raises(ValueError, match="entry"):
        parse("HloModule nothing\n")


def test_length_of_a_loop_without_a_noted_one() -> None:
    frame = parse(LOOP)
    trips, body = frame.loop(frame.computation.instructions["loop"])
    assert trips == 5  # 0, 2, 4, 6, 8
    assert body.arguments == ((None, None, 10),)  # the bound is known inside, the counter is not
    assert frame.loop(frame.computation.instructions["unknown"])[0] is None
