"""Whole functions lowered: kernels counted after fusion, control flow, donation, calls, empty and rank-0 tensors."""
import numpy as np
import pytest
from engram.interp.interpreter import Interpreter
from lowering_cases import check, function, inputs, kernels, to_loops

MLP = """
func @f(%x: f32[8,6], %w: f32[6,40], %b: f32[40], %y: i64[8]) -> (f32[], f32[6,40], f32[40]) attributes {donate = [[1, 1], [2, 2]]} {
  %h = tensor.dot_general(%x, %w) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f32[8,40]
  %bb = tensor.broadcast(%b) {shape = [8,40], dims = [1]} : f32[8,40]
  %z = tensor.add(%h, %bb) : f32[8,40]
  %0 = tensor.constant() {value = 0.0, type = f32[8,40]} : f32[8,40]
  %r = tensor.max(%z, %0) : f32[8,40]
  %m = tensor.reduce_max(%r) {dims = [1]} : f32[8]
  %mb = tensor.broadcast(%m) {shape = [8,40], dims = [0]} : f32[8,40]
  %s = tensor.sub(%r, %mb) : f32[8,40]
  %e = tensor.exp(%s) : f32[8,40]
  %t = tensor.reduce_sum(%e) {dims = [1]} : f32[8]
  %lt = tensor.log(%t) : f32[8]
  %ltb = tensor.broadcast(%lt) {shape = [8,40], dims = [0]} : f32[8,40]
  %lp = tensor.sub(%s, %ltb) : f32[8,40]
  %yi = tensor.reshape(%y) {shape = [8,1]} : i64[8,1]
  %pick = tensor.take_along(%lp, %yi) {dim = 1} : f32[8,1]
  %l = tensor.reduce_sum(%pick) {dims = [0,1]} : f32[]
  %p = tensor.exp(%lp) : f32[8,40]
  %m1 = tensor.constant() {value = -1.0, type = f32[8,1]} : f32[8,1]
  %dz = tensor.put_along_add(%p, %yi, %m1) {dim = 1} : f32[8,40]
  %c = tensor.compare(%z, %0) {predicate = "gt"} : bool[8,40]
  %dr = tensor.select(%c, %dz, %0) : f32[8,40]
  %dw = tensor.dot_general(%x, %dr) {lhs_batch = [], rhs_batch = [], lhs_contract = [0], rhs_contract = [0]} : f32[6,40]
  %db = tensor.reduce_sum(%dr) {dims = [0]} : f32[40]
  %lr = tensor.constant() {value = 0.1, type = f32[6,40]} : f32[6,40]
  %lr2 = tensor.constant() {value = 0.1, type = f32[40]} : f32[40]
  %u = tensor.mul(%dw, %lr) : f32[6,40]
  %w2 = tensor.sub(%w, %u) : f32[6,40]
  %u2 = tensor.mul(%db, %lr2) : f32[40]
  %b2 = tensor.sub(%b, %u2) : f32[40]
func.return(%l, %w2, %b2)
}
"""
SWAP = """
func @f(%a: f32[8], %b: f32[8]) -> (f32[8], f32[8]) attributes {donate = [[0, 0], [1, 1]]} {
func.return(%b, %a)
}
"""
SCAN = """
func @f(%xs: f32[5,3,4], %h: f32[3,4], %w: f32[4,4]) -> (f32[3,4], f32[5,3,4], f32[5]) {
  %hT, %ys, %z = scf.scan(%h, %xs) {length = 5, n_carry = 1, reverse = true} ({^(%i: i64[], %s: f32[3,4], %x: f32[3,4]):
  %d = tensor.dot_general(%s, %w) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f32[3,4]
  %q = tensor.add(%d, %x) : f32[3,4]
  %t = tensor.tanh(%q) : f32[3,4]
  %f = tensor.cast(%i) {dtype = f32} : f32[]
  %r = tensor.reduce_sum(%t) {dims = [0,1]} : f32[]
  %g = tensor.add(%f, %r) : f32[]
  scf.yield(%t, %t, %g)}) : f32[3,4], f32[5,3,4], f32[5]
func.return(%hT, %ys, %z)
}
"""
SCANSWAP = """
func @f(%a: f32[4], %b: f32[4]) -> (f32[4], f32[4]) attributes {donate = [[0, 1]]} {
  %p, %q = scf.scan(%a, %b) {length = 3, n_carry = 2, reverse = false} ({^(%i: i64[], %s: f32[4], %t: f32[4]):
  %u = tensor.add(%s, %t) : f32[4]
  scf.yield(%u, %s)}) : f32[4], f32[4]
func.return(%q, %p)
}
"""
WHILE = """
func @f(%x: f32[]) -> (f32[], f32[]) {
  %y = scf.while(%x) ({^(%a: f32[]):
  %l = tensor.constant() {value = 100.0, type = f32[]} : f32[]
  %c = tensor.compare(%a, %l) {predicate = "lt"} : bool[]
  scf.yield(%c)}, {^(%b: f32[]):
  %d = tensor.add(%b, %b) : f32[]
  scf.yield(%d)}) : f32[]
  %n = tensor.constant() {value = 110.0, type = f32[]} : f32[]
  %k = tensor.compare(%y, %n) {predicate = "lt"} : bool[]
  %z = scf.if(%k) ({^(): %s = tensor.sqrt(%y) : f32[]
  scf.yield(%s)}, {^(): scf.yield(%y)}) : f32[]
func.return(%y, %z)
}
"""
CALL = """
func @g(%p: f32[4], %d: f32[4]) -> (f32[4], f32[]) attributes {donate = [[0, 0]]} {
  %q = tensor.sub(%p, %d) : f32[4]
  %s = tensor.reduce_sum(%p) {dims = [0]} : f32[]
func.return(%q, %s)
}
func @f(%p: f32[4]) -> (f32[4], f32[], f32[4], f32[4]) attributes {donate = [[0, 0]]} {
  %e = tensor.exp(%p) : f32[4]
  %a, %s = func.call(%e, %e) {callee = "g", result_types = [f32[4], f32[]]} : f32[4], f32[]
  %b, %t = func.call(%p, %a) {callee = "g", result_types = [f32[4], f32[]]} : f32[4], f32[]
  %r = tensor.reverse(%b) {dims = [0]} : f32[4]
func.return(%b, %t, %r, %p)
}
"""
REVERSE_INPLACE = """
func @f(%p: f32[4]) -> (f32[4]) attributes {donate = [[0, 0]]} {
  %r = tensor.reverse(%p) {dims = [0]} : f32[4]
func.return(%r)
}
"""
ADAM = """
func @f(%p: f32[4,8], %m: f32[4,8], %v: f32[4,8], %g: f32[4,8], %t: i64[]) -> (f32[4,8], f32[4,8], f32[4,8]) attributes {donate = [[0, 0], [1, 1], [2, 2]]} {
  %b1 = tensor.constant() {value = 0.9, type = f32[4,8]} : f32[4,8]
  %c1 = tensor.constant() {value = 0.1, type = f32[4,8]} : f32[4,8]
  %b2 = tensor.constant() {value = 0.99, type = f32[4,8]} : f32[4,8]
  %c2 = tensor.constant() {value = 0.01, type = f32[4,8]} : f32[4,8]
  %m0 = tensor.mul(%m, %b1) : f32[4,8]
  %m1 = tensor.mul(%g, %c1) : f32[4,8]
  %m2 = tensor.add(%m0, %m1) : f32[4,8]
  %v0 = tensor.mul(%v, %b2) : f32[4,8]
  %gg = tensor.mul(%g, %g) : f32[4,8]
  %v1 = tensor.mul(%gg, %c2) : f32[4,8]
  %v2 = tensor.add(%v0, %v1) : f32[4,8]
  %tf = tensor.cast(%t) {dtype = f32} : f32[]
  %b1s = tensor.constant() {value = 0.9, type = f32[]} : f32[]
  %pw = tensor.pow(%b1s, %tf) : f32[]
  %one = tensor.constant() {value = 1.0, type = f32[]} : f32[]
  %bc = tensor.sub(%one, %pw) : f32[]
  %bcb = tensor.broadcast(%bc) {shape = [4,8], dims = []} : f32[4,8]
  %mh = tensor.div(%m2, %bcb) : f32[4,8]
  %sv = tensor.sqrt(%v2) : f32[4,8]
  %eps = tensor.constant() {value = 1e-8, type = f32[4,8]} : f32[4,8]
  %den = tensor.add(%sv, %eps) : f32[4,8]
  %st = tensor.div(%mh, %den) : f32[4,8]
  %p2 = tensor.sub(%p, %st) : f32[4,8]
func.return(%p2, %m2, %v2)
}
"""
LAYERNORM = """
func @f(%x: f32[2,3,8], %g: f32[8]) -> (f32[2,3,8], f32[2,3]) {
  %s = tensor.reduce_sum(%x) {dims = [2]} : f32[2,3]
  %n = tensor.constant() {value = 0.125, type = f32[2,3]} : f32[2,3]
  %mu = tensor.mul(%s, %n) : f32[2,3]
  %mub = tensor.broadcast(%mu) {shape = [2,3,8], dims = [0,1]} : f32[2,3,8]
  %d = tensor.sub(%x, %mub) : f32[2,3,8]
  %dd = tensor.mul(%d, %d) : f32[2,3,8]
  %vs = tensor.reduce_sum(%dd) {dims = [2]} : f32[2,3]
  %va = tensor.mul(%vs, %n) : f32[2,3]
  %rs = tensor.rsqrt(%va) : f32[2,3]
  %rsb = tensor.broadcast(%rs) {shape = [2,3,8], dims = [0,1]} : f32[2,3,8]
  %y = tensor.mul(%d, %rsb) : f32[2,3,8]
  %gb = tensor.broadcast(%g) {shape = [2,3,8], dims = [2]} : f32[2,3,8]
  %o = tensor.mul(%y, %gb) : f32[2,3,8]
func.return(%o, %rs)
}
"""
SOFTMAX = """
func @f(%x: f32[2,3,8]) -> (f32[2,3,8]) attributes {donate = [[0, 0]]} {
  %m = tensor.reduce_max(%x) {dims = [2]} : f32[2,3]
  %m1 = tensor.reshape(%m) {shape = [2,3,1]} : f32[2,3,1]
  %mb = tensor.broadcast(%m1) {shape = [2,3,8], dims = [0,1,2]} : f32[2,3,8]
  %d = tensor.sub(%x, %mb) : f32[2,3,8]
  %e = tensor.exp(%d) : f32[2,3,8]
  %s = tensor.reduce_sum(%e) {dims = [2]} : f32[2,3]
  %s1 = tensor.reshape(%s) {shape = [2,3,1]} : f32[2,3,1]
  %sb = tensor.broadcast(%s1) {shape = [2,3,8], dims = [0,1,2]} : f32[2,3,8]
  %o = tensor.div(%e, %sb) : f32[2,3,8]
func.return(%o)
}
"""
BIGREDUCE = """
func @f(%x: f32[300,40], %y: f32[300,40]) -> (f32[], f32[40]) {
  %d = tensor.sub(%x, %y) : f32[300,40]
  %e = tensor.mul(%d, %d) : f32[300,40]
  %s = tensor.reduce_sum(%e) {dims = [0,1]} : f32[]
  %n = tensor.constant() {value = 0.125, type = f32[]} : f32[]
  %l = tensor.mul(%s, %n) : f32[]
  %c = tensor.reduce_sum(%d) {dims = [0]} : f32[40]
func.return(%l, %c)
}
"""
EMPTY = """
func @f(%x: f32[0,4], %y: f32[3,0]) -> (f32[0,4], f32[4], f32[3,4], f32[3]) {
  %e = tensor.mul(%x, %x) : f32[0,4]
  %c = tensor.reduce_sum(%e) {dims = [0]} : f32[4]
  %d = tensor.dot_general(%y, %x) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f32[3,4]
  %m = tensor.reduce_max(%y) {dims = [1]} : f32[3]
func.return(%e, %c, %d, %m)
}
"""
ATTENTION = """
func @f(%q: f32[2,5,12]) -> (f32[2,5,12]) {
  %r = tensor.reshape(%q) {shape = [2,5,3,4]} : f32[2,5,3,4]
  %t = tensor.transpose(%r) {perm = [0,2,1,3]} : f32[2,3,5,4]
  %s = tensor.dot_general(%t, %t) {lhs_batch = [0,1], rhs_batch = [0,1], lhs_contract = [3], rhs_contract = [3]} : f32[2,3,5,5]
  %i = tensor.iota() {shape = [5,5], dim = 0, dtype = i64} : i64[5,5]
  %j = tensor.iota() {shape = [5,5], dim = 1, dtype = i64} : i64[5,5]
  %c = tensor.compare(%j, %i) {predicate = "le"} : bool[5,5]
  %cb = tensor.broadcast(%c) {shape = [2,3,5,5], dims = [2,3]} : bool[2,3,5,5]
  %n = tensor.constant() {value = -1e9, type = f32[2,3,5,5]} : f32[2,3,5,5]
  %k = tensor.select(%cb, %s, %n) : f32[2,3,5,5]
  %m = tensor.reduce_max(%k) {dims = [3]} : f32[2,3,5]
  %mb = tensor.broadcast(%m) {shape = [2,3,5,5], dims = [0,1,2]} : f32[2,3,5,5]
  %d = tensor.sub(%k, %mb) : f32[2,3,5,5]
  %e = tensor.exp(%d) : f32[2,3,5,5]
  %z = tensor.reduce_sum(%e) {dims = [3]} : f32[2,3,5]
  %zb = tensor.broadcast(%z) {shape = [2,3,5,5], dims = [0,1,2]} : f32[2,3,5,5]
  %p = tensor.div(%e, %zb) : f32[2,3,5,5]
  %o = tensor.dot_general(%p, %t) {lhs_batch = [0,1], rhs_batch = [0,1], lhs_contract = [3], rhs_contract = [2]} : f32[2,3,5,4]
  %ot = tensor.transpose(%o) {perm = [0,2,1,3]} : f32[2,5,3,4]
  %oo = tensor.reshape(%ot) {shape = [2,5,12]} : f32[2,5,12]
func.return(%oo)
}
"""

ALL = {k.lower(): v for k, v in list(globals().items()) if k.isupper() and isinstance(v, str)}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fuse", [True, False])
def test_results(name, fuse):
    for seed in range(2):
        check(function(ALL[name]), fuse, seed=seed)


def test_softmax_is_one_kernel_in_place():
    m = to_loops(function(SOFTMAX))
    assert kernels(m) == {"parallel": 1}


def test_layer_norm_is_one_kernel():
    assert kernels(to_loops(function(LAYERNORM))) == {"parallel": 1}


def test_adam_is_one_kernel_with_three_stores():
    m = to_loops(function(ADAM))
    found = [op for op in m.funcs["f"].body.ops if op.name == "loop.parallel"]
    stores = [sum(o.name == "loop.store" for r in op.regions for o in r.walk()) for op in found]
    assert sorted(stores) == [1, 3]                       # the step's bias correction, a single number, is its own kernel
    assert found[-1].attrs["extents"] == [32]             # [4, 8] became one loop
    assert not any(op.name == "loop.copy" for op in m.walk())


def test_bias_and_relu_are_one_kernel():
    m = to_loops(function("""
func @f(%x: f32[8,40], %w: f32[40,40], %b: f32[40]) -> (f32[8,40]) {
  %h = tensor.dot_general(%x, %w) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f32[8,40]
  %c = tensor.broadcast(%b) {shape = [8,40], dims = [1]} : f32[8,40]
  %z = tensor.add(%h, %c) : f32[8,40]
  %0 = tensor.constant() {value = 0.0, type = f32[8,40]} : f32[8,40]
  %r = tensor.max(%z, %0) : f32[8,40]
  func.return(%r)
}"""))
    assert kernels(m) == {"contract": 1}                  # the product's epilogue


def test_transposes_and_reshapes_of_operands_are_views():
    m = to_loops(function(ATTENTION.replace("2,5,12", "2,50,12").replace("2,5,3,4", "2,50,3,4").replace("2,3,5,4", "2,3,50,4")
                          .replace("5,5]", "50,50]").replace("2,3,5]", "2,3,50]")))
    assert kernels(m) == {"alloc": 2, "contract": 2, "parallel": 1}       # softmax between them; nothing is copied or transposed


def test_scan_writes_carries_and_stacked_results_in_place():
    m = to_loops(function(SCAN.replace("3,4]", "30,40]").replace("f32[4,4]", "f32[40,40]")))
    loop = next(op for op in m.funcs["f"].body.ops if op.name == "loop.for")
    names = [op.name for op in loop.regions[0].ops]
    assert names.count("loop.copy") == 0


def test_swapped_donated_arguments_keep_their_values():
    m = to_loops(function(SWAP))
    a, b = np.arange(8, dtype=np.float32), np.arange(8, dtype=np.float32) + 100
    x, y = Interpreter(m, arena=True).call("f", [a, b])
    np.testing.assert_array_equal(x, np.arange(8) + 100)
    np.testing.assert_array_equal(y, np.arange(8))


def test_a_failed_assertion_is_an_error():
    from engram.compiler.diagnostics import RuntimeError_
    m = to_loops(function("""
func @f(%x: f32[]) -> (f32[]) {
  %0 = tensor.constant() {value = 0.0, type = f32[]} : f32[]
  %c = tensor.compare(%x, %0) {predicate = "gt"} : bool[]
  tensor.assert(%c) {message = "x must be positive"}
  func.return(%x)
}"""))
    Interpreter(m).call("f", [np.float32(1)])
    with pytest.raises(RuntimeError_, match="x must be positive"):
        Interpreter(m).call("f", [np.float32(-1)])


def test_large_reductions_are_split_by_shape():
    text = """
func @f(%x: f32[70000]) -> (f32[]) {
  %y = tensor.mul(%x, %x) : f32[70000]
  %s = tensor.reduce_sum(%y) {dims = [0]} : f32[]
  func.return(%s)
}"""
    m = to_loops(function(text))
    assert kernels(m) == {"alloc": 1, "parallel": 2}
    x = inputs(function(text))[0]
    got = Interpreter(m, arena=True).call("f", [x])[0]
    assert abs(float(got) - float((x.astype(np.float64) ** 2).sum())) < 1e-2


UPDATE = """
func @update(%p: f32[4], %m: f32[4], %g: f32[4]) -> (f32[4], f32[4]) {
  %n = tensor.add(%m, %g) : f32[4]
  %q = tensor.sub(%p, %n) : f32[4]
  func.return(%q, %n)
}
func @f(%p: f32[4], %m: f32[4], %p2: f32[4], %m2: f32[4], %x: f32[4]) -> (f32[4], f32[4], f32[4], f32[4]) attributes {donate = [[0, 0], [1, 1], [2, 2], [3, 3]]} {
  %g = tensor.mul(%p, %x) : f32[4]
  %g2 = tensor.mul(%p2, %x) : f32[4]
  %a, %b = func.call(%p, %m, %g) {callee = "update", result_types = [f32[4], f32[4]]} : f32[4], f32[4]
  %c, %d = func.call(%p2, %m2, %g2) {callee = "update", result_types = [f32[4], f32[4]]} : f32[4], f32[4]
  func.return(%a, %b, %c, %d)
}
"""


def test_donation_reaches_called_functions():
    m = check(function(UPDATE))
    assert m.funcs["update"].attrs["donate"] == [[0, 0], [1, 1]]
    assert not any(op.name == "loop.copy" for op in m.walk())


def test_a_caller_that_reads_later_forbids_donation():
    text = UPDATE.replace("func.return(%a, %b, %c, %d)", "%e = tensor.add(%a, %p) : f32[4]\n  func.return(%e, %b, %c, %d)")
    m = check(function(text))
    assert m.funcs["update"].attrs["donate"] == [[1, 1]]


SOMETIMES = """
func @update(%p: f32[4], %g: f32[4]) -> (f32[4]) {
  %q = tensor.sub(%p, %g) : f32[4]
  %r = tensor.exp(%q) : f32[4]
  func.return(%r)
}
func @f(%p: f32[4], %g: f32[4], %acc: f32[4], %n: i64[]) -> (f32[4], f32[4]) attributes {donate = [[0, 0], [2, 1]]} {
  %a = tensor.add(%acc, %g) : f32[4]
  %1 = tensor.constant() {value = 1, type = i64[]} : i64[]
  %c = tensor.compare(%n, %1) {predicate = "gt"} : bool[]
  %q, %b = scf.if(%c) ({^():
    %u = func.call(%p, %a) {callee = "update", result_types = [f32[4]]} : f32[4]
    %z = tensor.constant() {value = 0.0, type = f32[4]} : f32[4]
    scf.yield(%u, %z)
  }, {^(): scf.yield(%p, %a)}) : f32[4], f32[4]
  func.return(%q, %b)
}
"""


def test_an_update_made_sometimes_copies_nothing():
    for n in (0, 3):
        m = function(SOMETIMES)
        args = [*inputs(m)[:3], np.array(n)]
        lowered = check(m, args=args)
    assert lowered.funcs["update"].attrs["donate"] == [[0, 0]]
    assert not any(op.name == "loop.copy" for op in lowered.walk())


def test_parts_of_a_sum_are_made_where_they_belong():
    """The gradient of slices: contractions write into their part of one array, which is not padded, added or copied together."""
    m = check(function("""
func @f(%x: f32[2,50,24], %w: f32[12,12]) -> (f32[2,50,24]) {
  %z = tensor.constant() {value = 0.0, type = f32[]} : f32[]
  %q = tensor.slice(%x) {start = [0,0,0], limit = [2,50,12], stride = [1,1,1]} : f32[2,50,12]
  %k = tensor.slice(%x) {start = [0,0,12], limit = [2,50,24], stride = [1,1,1]} : f32[2,50,12]
  %a = tensor.dot_general(%q, %w) {lhs_batch = [], rhs_batch = [], lhs_contract = [2], rhs_contract = [0]} : f32[2,50,12]
  %b = tensor.dot_general(%k, %w) {lhs_batch = [], rhs_batch = [], lhs_contract = [2], rhs_contract = [1]} : f32[2,50,12]
  %p = tensor.pad(%a, %z) {low = [0,0,0], high = [0,0,12], interior = [0,0,0]} : f32[2,50,24]
  %r = tensor.pad(%b, %z) {low = [0,0,12], high = [0,0,0], interior = [0,0,0]} : f32[2,50,24]
  %s = tensor.add(%p, %r) : f32[2,50,24]
  func.return(%s)
}"""))
    assert kernels(m) == {"contract": 2}


def test_the_gradient_of_a_convolution_stores_no_windows():
    m = check(function("""
func @f(%w: f32[4,3,3,3], %g: f32[2,4,8,8]) -> (f32[2,3,10,10]) {
  %r = tensor.dot_general(%w, %g) {lhs_batch = [], rhs_batch = [], lhs_contract = [0], rhs_contract = [1]} : f32[3,3,3,2,8,8]
  %p = tensor.transpose(%r) {perm = [3,0,4,5,1,2]} : f32[2,3,8,8,3,3]
  %c = tensor.fold_windows(%p) {size = [3,3], stride = [1,1], dilation = [1,1], shape = [10,10]} : f32[2,3,10,10]
  func.return(%c)
}"""), tol=1e-4)
    largest = max(op.attrs["type"].numel for op in m.walk() if op.name == "loop.alloc")
    assert kernels(m)["contract"] == 1 and largest == 2 * 4 * 12 * 12


def test_a_product_that_cannot_be_written_transposed_still_reaches_its_result():
    check(function("""
func @f(%x: f32[8,5,8], %w: f32[5,8]) -> (f32[8,8,8]) {
  %0 = tensor.dot_general(%x, %w) {lhs_batch = [], rhs_batch = [], lhs_contract = [1], rhs_contract = [0]} : f32[8,8,8]
  %1 = tensor.transpose(%0) {perm = [0, 2, 1]} : f32[8,8,8]
  func.return(%1)
}"""))
