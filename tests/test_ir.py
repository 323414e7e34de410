"""The IR's textual form and verifier: printing and parsing are exact inverses; every invariant is caught, all errors at once."""
import numpy as np
import pytest
from engram.compiler.ir import Block, Func, Loc, Module, Op, TensorType, bf16, bool_, f32, f64, i64
from engram.compiler.ir.builder import Builder
from engram.compiler.ir.dims import Dim, divide, maybe_equal
from engram.compiler.ir.parser import IrSyntaxError, parse_module
from engram.compiler.ir.printer import print_module
from engram.compiler.ir.verifier import VerificationError, verify
from engram.compiler.ops import TypeMismatch


def scan_module() -> Module:
    f = Func("f", [TensorType(f32, (3, 5)), TensorType(f32, (5, 4))], ["x", "hidden.w"], [TensorType(f32, (4,)), TensorType(f32, (3, 4))])
    b = Builder(f.body, Loc('a "b".nn', 1, 2, 1, 5))
    x, w = f.args
    y = b.op("tensor.dot_general", [x, w], dict(lhs_batch=[], rhs_batch=[], lhs_contract=[1], rhs_contract=[0])).result
    z = b.op("nn.softmax", [y], {"dim": 1}).result
    c = b.constant(np.array([0.1, -0.0, np.inf, 3e-45]), TensorType(f32, (4,)))
    b.constant(float("nan"), TensorType(bf16, ()))
    b.constant(True, TensorType(bool_, (2,)))
    body = Block([TensorType(i64), TensorType(f32, (4,)), TensorType(f32, (4,))], ["i", "s", "x"])
    inner = Builder(body)
    s = inner.add(body.args[1], body.args[2])
    inner.op("scf.yield", [s, s])
    o = b.op("scf.scan", [c, z], {"length": 3, "n_carry": 1, "reverse": False}, [body])
    b.op("func.return", o.results)
    return Module([f], {"stage": "nn", "entries": ["f"]})


def test_print_parse_are_inverse():
    text = print_module(scan_module())
    again = parse_module(text)
    verify(again)
    assert print_module(again) == text


def test_constants_keep_every_bit():
    op = next(o for o in parse_module(print_module(scan_module())).walk() if isinstance(o.attrs.get("value"), np.ndarray))
    assert op.attrs["value"].tobytes() == np.array([0.1, -0.0, np.inf, 3e-45], "f4").tobytes()


def test_equal_hints_get_names_of_their_own():
    f = Func("f", [TensorType(f32)] * 3, ["x", "x", "x_1"], [TensorType(f32)])
    Builder(f.body).op("func.return", [f.args[2]])
    text = print_module(Module([f]))
    assert text.count("%x_1_1") == 2 and print_module(parse_module(text)) == text


@pytest.mark.parametrize("text, where", [("module {", "1:9"), ("module { func @f(%x: f33[2]) -> () { } }", "1:22"), ("modul", "1:1"),
                                         ("module { func @f() -> () { func.return(%y) } }", "1:40")])
def test_bad_text_is_an_error_with_its_place(text, where):
    with pytest.raises(IrSyntaxError, match=f"^{where}: "):
        parse_module(text)


def broken(change) -> str:
    m = scan_module()
    change(m)
    with pytest.raises(VerificationError) as e:
        verify(m, "some-pass")
    assert "after pass some-pass" in str(e.value)
    return str(e.value)


def test_verifier_use_before_definition():
    def swap(m):
        ops = m.funcs["f"].body.ops
        ops[0], ops[1] = ops[1], ops[0]
    assert "used before its definition" in broken(swap)


def test_verifier_reports_all_errors_at_once():
    def change(m):
        body = m.funcs["f"].body
        body.ops[0].results[0].type = TensorType(f64, (3, 4))
        body.ops[-1].operands.pop()
        body.ops.insert(2, Op("tensor.nothing", []))
    text = broken(change)
    assert "inferred (f32[3,4])" in text and "unknown op" in text and "declared (f32[4], f32[3,4])" in text


def test_verifier_stage_legality():
    assert "nn.softmax: not legal at stage tensor" in broken(lambda m: m.attrs.update(stage="tensor"))


def test_verifier_recursion_and_calls():
    f = Func("f", [TensorType(f32)], ["x"], [TensorType(f32)])
    b = Builder(f.body)
    y = b.op("func.call", [f.args[0]], {"callee": "f", "result_types": [TensorType(f32)]}).result
    z = b.op("func.call", [y], {"callee": "g", "result_types": [TensorType(f32)]}).result
    b.op("func.return", [z])
    with pytest.raises(VerificationError, match="(?s)@g, which does not exist.*recursion: @f -> @f"):
        verify(Module([f]))


def test_values_of_another_function_are_refused():
    m = scan_module()
    g = Func("g", [], [], [TensorType(f32, (3, 5))])
    Builder(g.body).op("func.return", [m.funcs["f"].args[0]])
    m.add(g)
    with pytest.raises(VerificationError, match="comes from elsewhere"):
        verify(m)


def test_dims_are_polynomials():
    d, t = Dim.symbol("d"), Dim.symbol("T")
    assert 3 * d - d == 2 * d and (d + 1) * (d - 1) == d * d - 1 and d - d == 0
    assert str(3 * d + 1) == "3*d+1" and str(t * d) == "T*d"
    assert divide(3 * d, 3) == d and divide(6 * d * t, 2 * t) == 3 * d
    assert maybe_equal(divide(d, 4), t) and not maybe_equal(d, t)
    assert (2 * d + t).substitute({"d": 3, "T": 4}) == 10


def test_broadcast_checks_sizes():
    f = Func("f", [TensorType(f32, (3,))])
    with pytest.raises(TypeMismatch, match=r"cannot broadcast f32\[3\] to f32\[4\]"):
        Builder(f.body).op("tensor.broadcast", [f.args[0]], {"shape": [4], "dims": [0]})
