"""canonicalize, cse, dce, fold, inline: what each does to the IR, and that results keep their bits."""
import numpy as np
import pytest
from engram.compiler import ops  # noqa: F401
from engram.compiler.ir.core import clone_module
from engram.compiler.ir.parser import parse_module
from engram.compiler.ir.printer import print_module
from engram.compiler.ir.verifier import verify
from engram.interp.evaluate import evaluate_op
from engram.interp.interpreter import Interpreter
from engram.passes.canonicalize import Canonicalize
from engram.passes.cse import Cse
from engram.passes.dce import Dce
from engram.passes.fold import Fold
from engram.passes.inline import Inline

SPECIAL = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3e-45, 1.5e38, -2.5], np.float32)


def module(body: str, extra: str = "", entries: str = '["f"]') -> str:
    return f'module attributes {{stage = "tensor", entries = {entries}}} {{\n{body}\n{extra}\n}}'


def run(text: str, *passes, args=None):
    """The module after the passes; @f gives the same bits as before for special values."""
    before = parse_module(text)
    verify(before)
    after = clone_module(before)
    for p in passes:
        after = p.apply(after)
        verify(after, p.name)
    if args is None:
        args = []
        for i, a in enumerate(before.funcs["f"].args):
            dt = a.type.dtype
            values = np.resize(np.roll(SPECIAL, i) if dt.is_float else np.arange(-2, 5), a.type.shape)
            args.append((values > 0 if dt.is_bool else values).astype(dt.numpy))
    with np.errstate(all="ignore"):
        want, got = (Interpreter(m).call("f", [a.copy() for a in args]) for m in (before, after))
    for x, y in zip(want, got):
        np.testing.assert_array_equal(x, y)
        if x.dtype.kind == "f":
            np.testing.assert_array_equal(np.signbit(x[~np.isnan(x)]), np.signbit(y[~np.isnan(y)]))
    return after


def names(m, func="f"):
    return [op.name.removeprefix("tensor.") for op in m.funcs[func].walk() if op.name not in ("func.return", "scf.yield")]


def unary(expr: str, result="f32[10]", arg="f32[10]") -> str:
    return module(f"func @f(%x: {arg}) -> ({result}) {{\n{expr}\nfunc.return(%y) }}")


CASES = {
    "mul one": ("%c = tensor.constant() {value = 1.0, type = f32[10]} : f32[10]\n%y = tensor.mul(%x, %c) : f32[10]", []),
    "add zero stays": ("%c = tensor.constant() {value = 0.0, type = f32[10]} : f32[10]\n%y = tensor.add(%x, %c) : f32[10]", ["constant", "add"]),
    "add minus zero": ("%c = tensor.constant() {value = -0.0, type = f32[10]} : f32[10]\n%y = tensor.add(%c, %x) : f32[10]", []),
    "sub zero": ("%c = tensor.constant() {value = 0.0, type = f32[10]} : f32[10]\n%y = tensor.sub(%x, %c) : f32[10]", []),
    "sub minus zero stays": ("%c = tensor.constant() {value = -0.0, type = f32[10]} : f32[10]\n%y = tensor.sub(%x, %c) : f32[10]", ["constant", "sub"]),
    "mul zero stays": ("%c = tensor.constant() {value = 0.0, type = f32[10]} : f32[10]\n%y = tensor.mul(%x, %c) : f32[10]", ["constant", "mul"]),
    "div by 4": ("%c = tensor.constant() {value = 4.0, type = f32[10]} : f32[10]\n%y = tensor.div(%x, %c) : f32[10]", ["constant", "mul"]),
    "div by 3 stays": ("%c = tensor.constant() {value = 3.0, type = f32[10]} : f32[10]\n%y = tensor.div(%x, %c) : f32[10]", ["constant", "div"]),
    "neg neg": ("%a = tensor.neg(%x) : f32[10]\n%y = tensor.neg(%a) : f32[10]", []),
    "add neg": ("%a = tensor.neg(%x) : f32[10]\n%y = tensor.add(%x, %a) : f32[10]", ["sub"]),
    "pow 2": ("%c = tensor.constant() {value = 2.0, type = f32[10]} : f32[10]\n%y = tensor.pow(%x, %c) : f32[10]", ["mul"]),
    "max least": ("%c = tensor.constant() {value = -inf, type = f32[10]} : f32[10]\n%y = tensor.max(%x, %c) : f32[10]", []),
    "widen and narrow": ("%a = tensor.cast(%x) {dtype = f64} : f64[10]\n%y = tensor.cast(%a) {dtype = f32} : f32[10]", []),
    "narrow and widen stays": ("%a = tensor.cast(%x) {dtype = bf16} : bf16[10]\n%y = tensor.cast(%a) {dtype = f32} : f32[10]", ["cast", "cast"]),
    "select same": ("%c = tensor.compare(%x, %x) {predicate = \"eq\"} : bool[10]\n%y = tensor.select(%c, %x, %x) : f32[10]", []),
    "x < x": ("%c = tensor.compare(%x, %x) {predicate = \"lt\"} : bool[10]\n%a = tensor.neg(%x) : f32[10]\n%y = tensor.select(%c, %a, %x) : f32[10]", []),
    "reshape reshape": ("%a = tensor.reshape(%x) {shape = [5, 2]} : f32[5,2]\n%y = tensor.reshape(%a) {shape = [10]} : f32[10]", []),
    "reverse reverse": ("%a = tensor.reverse(%x) {dims = [0]} : f32[10]\n%y = tensor.reverse(%a) {dims = [0]} : f32[10]", []),
    "slice whole": ("%y = tensor.slice(%x) {start = [0], limit = [10], stride = [1]} : f32[10]", []),
    "concat one": ("%y = tensor.concat(%x) {dim = 0} : f32[10]", []),
    "floor floor": ("%a = tensor.floor(%x) : f32[10]\n%y = tensor.ceil(%a) : f32[10]", ["floor"]),
}


@pytest.mark.parametrize("case", CASES)
def test_identities(case):
    body, left = CASES[case]
    assert names(run(unary(body), Canonicalize(), Dce())) == left


def test_movement_composes():
    m = run(unary("%a = tensor.reshape(%x) {shape = [10, 1]} : f32[10,1]\n%y = tensor.broadcast(%a) {shape = [10, 4], dims = [0, 1]} : f32[10,4]", "f32[10,4]"),
            Canonicalize(), Dce())
    assert names(m) == ["broadcast"]
    m = run(unary("%a = tensor.slice(%x) {start = [1], limit = [10], stride = [2]} : f32[5]\n%y = tensor.slice(%a) {start = [1], limit = [5], stride = [3]} : f32[2]", "f32[2]"),
            Canonicalize(), Dce())
    assert names(m) == ["slice"]


def test_reduction_over_one_element_keeps_the_sign_rule_of_sums():
    m = run(unary("%y = tensor.reduce_sum(%x) {dims = [1]} : f32[10]", arg="f32[10,1]"), Canonicalize(), Dce())
    assert names(m) == ["reshape", "constant", "add"]
    m = run(unary("%y = tensor.reduce_max(%x) {dims = [1]} : f32[10]", arg="f32[10,1]"), Canonicalize(), Dce())
    assert names(m) == ["reshape"]


def test_transposes_fold_into_contractions():
    text = module("""func @f(%x: f32[3,4], %w: f32[5,4]) -> (f32[5,3]) {
      %t = tensor.transpose(%w) {perm = [1, 0]} : f32[4,5]
      %d = tensor.dot_general(%x, %t) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f32[3,5]
      %y = tensor.transpose(%d) {perm = [1, 0]} : f32[5,3]
      func.return(%y) }""")
    rng = np.random.default_rng(0)
    args = [rng.normal(size=s).astype("f4") for s in ((3, 4), (5, 4))]
    m = run(text, Canonicalize(), Dce(), args=args)
    assert names(m) == ["dot_general"]


def test_control_flow_that_is_known():
    text = module("""func @f(%x: f32[10]) -> (f32[10], f32[1,10]) {
      %c = tensor.constant() {value = false, type = bool[]} : bool[]
      %a = scf.if(%c) ({ ^(): %n = tensor.neg(%x) : f32[10] scf.yield(%n) }, { ^(): %e = tensor.abs(%x) : f32[10] scf.yield(%e) }) : f32[10]
      %s, %ys = scf.scan(%a) {length = 1, n_carry = 1, reverse = false} ({ ^(%i: i64[], %s0: f32[10]): %n = tensor.neg(%s0) : f32[10] scf.yield(%n, %s0) }) : f32[10], f32[1,10]
      func.return(%s, %ys) }""")
    assert names(run(text, Canonicalize(), Dce())) == ["abs", "neg", "reshape"]


def test_cse_within_regions_and_between_functions():
    text = module("""func @f(%x: f32[10]) -> (f32[10]) {
      %a = tensor.exp(%x) : f32[10]
      %p = tensor.add(%x, %a) : f32[10]
      %q = tensor.add(%a, %x) : f32[10]
      %s = scf.scan(%p) {length = 2, n_carry = 1, reverse = false} ({ ^(%i: i64[], %v: f32[10]): %e = tensor.exp(%x) : f32[10] %w = tensor.sub(%v, %e) : f32[10] scf.yield(%w) }) : f32[10]
      %g = func.call(%s) {callee = "g", result_types = [f32[10]]} : f32[10]
      %h = func.call(%s) {callee = "h", result_types = [f32[10]]} : f32[10]
      %r = tensor.mul(%g, %h) : f32[10]
      %y = tensor.mul(%r, %q) : f32[10]
      func.return(%y) }""", """func @g(%x: f32[10]) -> (f32[10]) { %y = tensor.abs(%x) : f32[10] func.return(%y) }
      func @h(%z: f32[10]) -> (f32[10]) attributes {arg_names = ["z"]} { %y = tensor.abs(%z) : f32[10] func.return(%y) }""")
    m = run(text, Cse())
    assert names(m) == ["exp", "add", "scf.scan", "sub", "func.call", "mul", "mul"] and list(m.funcs) == ["f", "g"]


def test_cse_tells_zeros_and_booleans_apart():
    text = module("""func @f(%x: f32[10]) -> (f32[10], f32[10]) {
      %a = tensor.constant() {value = 0.0, type = f32[10]} : f32[10]
      %b = tensor.constant() {value = -0.0, type = f32[10]} : f32[10]
      func.return(%a, %b) }""")
    assert names(run(text, Cse())) == ["constant", "constant"]


def test_dce_shrinks_loops_functions_and_keeps_effects():
    text = module("""func @f(%x: f32[10], %n: i64[]) -> (f32[10]) {
      %u = tensor.exp(%x) : f32[10]
      %c = tensor.compare(%n, %n) {predicate = "eq"} : bool[]
      tensor.assert(%c) {message = "never"}
      %s, %t, %ys = scf.scan(%x, %u) {length = 3, n_carry = 2, reverse = false} ({ ^(%i: i64[], %a: f32[10], %b: f32[10]):
        %k = tensor.abs(%b) : f32[10]
        %l = tensor.neg(%a) : f32[10]
        scf.yield(%l, %k, %k) }) : f32[10], f32[10], f32[3,10]
      %p, %q = func.call(%s, %u) {callee = "g", result_types = [f32[10], f32[10]]} : f32[10], f32[10]
      func.return(%q) }""", """func @g(%x: f32[10], %z: f32[10]) -> (f32[10], f32[10]) attributes {arg_names = ["x", "z"], result_names = ["a", "b"]} {
      %y = tensor.sin(%z) : f32[10] %w = tensor.abs(%x) : f32[10] func.return(%y, %w) }
      func @unused() -> () { func.return() }""")
    m = run(text, Dce())
    assert names(m) == ["compare", "assert", "scf.scan", "neg", "func.call"]
    assert len(m.funcs["g"].args) == 1 and m.funcs["g"].attrs["result_names"] == ["b"] and list(m.funcs) == ["f", "g"]


def test_dce_of_while_keeps_what_the_condition_needs():
    text = module("""func @f(%x: f32[], %y: f32[]) -> (f32[]) {
      %a, %b, %d = scf.while(%x, %y, %y) ({ ^(%p: f32[], %q: f32[], %z: f32[]): %c = tensor.compare(%q, %p) {predicate = "lt"} : bool[] scf.yield(%c) },
        { ^(%p: f32[], %q: f32[], %z: f32[]): %k = tensor.constant() {value = 1.0, type = f32[]} : f32[] %r = tensor.add(%q, %k) : f32[] %m = tensor.mul(%z, %z) : f32[] scf.yield(%p, %r, %m) }) : f32[], f32[], f32[]
      func.return(%b) }""")
    m = run(text, Dce(), args=[np.float32(3.5), np.float32(0)])
    (loop,) = [op for op in m.walk() if op.name == "scf.while"]
    assert len(loop.results) == 2


def test_fold_asks_the_evaluator():
    text = module("""func @f() -> (f32[4], f32[1000], i64[3]) {
      %a = tensor.constant() {value = 2.0, type = f32[]} : f32[]
      %s = tensor.sqrt(%a) : f32[]
      %y = tensor.broadcast(%s) {shape = [4], dims = []} : f32[4]
      %c = tensor.constant() {value = 0.1, type = f32[1000]} : f32[1000]
      %d = tensor.add(%c, %c) : f32[1000]
      %i = tensor.constant() {value = 7, type = i64[3]} : i64[3]
      %z = tensor.constant() {value = 2, type = i64[3]} : i64[3]
      %q = tensor.floordiv(%i, %z) : i64[3]
      func.return(%y, %d, %q) }""")
    assert names(run(text, Fold(evaluate_op), Dce())) == ["constant"] * 3


def test_fold_leaves_failing_ops_and_large_results():
    text = module("""func @f(%x: f32[]) -> (f32[]) {
      %i = tensor.constant() {value = 7, type = i64[3]} : i64[3]
      %z = tensor.constant() {value = 0, type = i64[3]} : i64[3]
      %q = tensor.floordiv(%i, %z) : i64[3]
      func.return(%x) }""")
    before = parse_module(text)
    assert names(Fold(evaluate_op).apply(before)) == ["constant", "constant", "floordiv"]


def test_inline_small_or_once_and_keep_the_rest():
    big = "\n".join(f"%v{i + 1} = tensor.sin(%v{i}) : f32[10]" for i in range(20))
    text = module("""func @f(%x: f32[10]) -> (f32[10]) {
      %a = func.call(%x) {callee = "big", result_types = [f32[10]]} : f32[10]
      %b = func.call(%a) {callee = "big", result_types = [f32[10]]} : f32[10]
      %c = func.call(%b) {callee = "once", result_types = [f32[10]]} : f32[10]
      %d = func.call(%c) {callee = "tiny", result_types = [f32[10]]} : f32[10]
      %e = func.call(%d) {callee = "tiny", result_types = [f32[10]]} : f32[10]
      func.return(%e) }""", f"""func @big(%v0: f32[10]) -> (f32[10]) {{ {big} func.return(%v20) }}
      func @once(%v0: f32[10]) -> (f32[10]) {{ {big} %t = func.call(%v20) {{callee = "tiny", result_types = [f32[10]]}} : f32[10] func.return(%t) }}
      func @tiny(%x: f32[10]) -> (f32[10]) {{ %y = tensor.abs(%x) : f32[10] func.return(%y) }}""")
    m = run(text, Inline())
    assert list(m.funcs) == ["f", "big"] and names(m).count("func.call") == 2 and names(m).count("abs") == 3
    assert "func.call" not in names(run(text, Inline(all=True)))


def test_passes_print_and_parse():
    m = run(unary("%a = tensor.neg(%x) : f32[10]\n%y = tensor.neg(%a) : f32[10]"), Inline(), Canonicalize(), Fold(evaluate_op), Cse(), Dce())
    assert print_module(parse_module(print_module(m))) == print_module(m)
