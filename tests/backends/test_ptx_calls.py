"""Functions in PTX: the PTX machine puts a function's body where it is called."""

from __future__ import annotations

import pytest

from tests.ptx_machine import machine
from tests.ptx_machine.handwritten import run

pytestmark = pytest.mark.skipif(bool(machine.missing_reason()), reason=str(machine.missing_reason()))

#: a - b, and 7 where a is less than b: it has labels, two ends, and registers of the caller's names.
FUNCTION = """
.func (.param .b32 func_retval0) difference(.param .b32 difference_param_0, .param .b32 difference_param_1)
{
  .reg .b32 %r<4>;
  .reg .pred %p<2>;
  ld.param.u32 %r1, [difference_param_0];
  ld.param.u32 %r2, [difference_param_1];
  setp.lt.u32 %p1, %r1, %r2;
  @%p1 bra $less;
  sub.u32 %r3, %r1, %r2;
  st.param.b32 [func_retval0+0], %r3;
  ret;
$less:
  st.param.b32 [func_retval0+0], 7;
  ret;
}
"""


def call(result: str, a: str, b: str, name: str = "difference") -> str:
    """As nvcc writes it."""
    return f"""{{
      .param .b32 param0;
      st.param.b32 [param0+0], {a};
      .param .b32 param1;
      st.param.b32 [param1+0], {b};
      .param .b32 retval0;
      call.uni (retval0),
      {name},
      (
      param0,
      param1
      );
      ld.param.b32 {result}, [retval0+0];
    }}"""


def test_a_function_is_called_where_lanes_part_and_again_on_its_result() -> None:
    body = f"""
      mov.u32 %r1, 1000;
      mov.u32 %r2, 20;
      {call("%r9", "%t", "4")}
      {call("%r9", "%r9", "9")}
      add.u32 %r9, %r9, %r1;
      st.global.u32 [%own], %r9;"""
    once = [t - 4 if t >= 4 else 7 for t in range(32)]
    assert run(body, outside=FUNCTION) == [1000 + (x - 9 if x >= 9 else 7) for x in once]


def test_a_function_may_call_another() -> None:
    outer = f"""
.func (.param .b32 func_retval0) outer(.param .b32 outer_param_0, .param .b32 outer_param_1)
{{
  .reg .b32 %r<4>;
  ld.param.u32 %r1, [outer_param_0];
  ld.param.u32 %r2, [outer_param_1];
  {call("%r3", "%r1", "%r2")}
  add.u32 %r3, %r3, %r1;
  st.param.b32 [func_retval0+0], %r3;
  ret;
}}
"""
    body = f"{call('%r9', '%t', '4', 'outer')} st.global.u32 [%own], %r9;"
    expected = [t + (t - 4 if t >= 4 else 7) for t in range(32)]
    assert run(body, outside=outer + FUNCTION) == expected


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (call("%r9", "%t", "4", "missing"), "unknown function missing"),
        (call("%r9", "%t", "4").replace("param0,\n", ""), "wrong number of arguments of difference"),
        (call("%r9", "%t", "4").replace("call.uni", "@%p1 call.uni"), "a call under a condition"),
        (call("%r9", "%t", "4").replace("[retval0+0]", "[retval0+4]"), "single numbers only"),
        ("call.uni (%r9), difference, (%t, %b);", "%r9 is nothing that a call can hand over"),
    ],
)
def test_what_is_no_call_is_refused(body: str, message: str) -> None:
    with pytest.raises(machine.Fault, match=message):
        run(body, outside=FUNCTION)


def test_a_function_that_calls_itself_is_refused() -> None:
    with pytest.raises(machine.Fault, match="calls of calls"):
        run(
            call("%r9", "%t", "4", "for_ever"),
            outside=FUNCTION.replace("difference", "for_ever").replace(
                "$less:", "$less:" + call("%r3", "%r1", "%r2", "for_ever")
            ),
        )
