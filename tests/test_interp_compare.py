"""Distances in ulp, and what assert_close accepts and says."""
import math

import numpy as np
import pytest
from engram.compiler.ir import Func, Module, TensorType, f32
from engram.compiler.ir.builder import Builder
from engram.interp.compare import FAR, assert_close, eps, reference_with_tolerance, ulp_distance
from engram.interp.disturbed import element_tolerances
from engram.interp.interpreter import interpret
from helpers import FLOATS


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_neighbours_are_one_ulp_apart(dtype):
    one = np.array([1.0], dtype.numpy)
    up = np.array([1.0 + eps(dtype)], dtype.numpy)
    zero, minus_zero = np.zeros(1, dtype.numpy), -np.zeros(1, dtype.numpy)
    tiny = np.zeros(1, dtype.numpy)
    tiny.view(np.uint8)[0] = 1
    nan = np.full(1, np.nan).astype(dtype.numpy)
    assert ulp_distance(one, up) == ulp_distance(-up, -one) == 1
    assert ulp_distance(zero, minus_zero) == 0 and ulp_distance(tiny, -tiny) == 2
    assert ulp_distance(nan, -nan) == 0 and ulp_distance(nan, one) == FAR
    inf = np.full(1, np.inf).astype(dtype.numpy)
    assert ulp_distance(inf, -inf) > 2**15 - 2 ** (dtype.bits // 2)


def test_distance_of_far_apart_doubles_is_capped():
    assert ulp_distance(np.array(1e300), np.array(-1e300)) == FAR
    assert ulp_distance(np.array(math.pi), np.array(np.nextafter(math.pi, 4))) == 1


def test_what_passes():
    x = np.array([1.0, -0.0, np.nan], np.float32)
    assert_close(x, x)
    assert_close(x, x.astype(np.float64), rtol=1e-7)
    assert_close(np.nextafter(x, np.float32(9)), x, ulp=1)
    assert_close([x, x + np.float32(1e-3)], [x, x], atol=[0, 2e-3])
    with pytest.raises(AssertionError, match=r"result\[1\] is -0.0, expected 0.0; 1 of 3 elements differ"):
        assert_close(x, np.abs(x))
    with pytest.raises(AssertionError, match=r"y\[0\] is 1.0, expected 1.000000238418579, 2 ulp apart"):
        assert_close(x[:1], np.array([1 + 2**-22], np.float32), ulp=1, what="y")
    with pytest.raises(AssertionError, match="is 1.0, expected inf"):
        assert_close(np.array(1.0), np.array(np.inf), rtol=10)
    for bad in (x[:2], x.astype(np.float64), np.zeros(3, np.int64)):
        with pytest.raises(AssertionError):
            assert_close(x, bad)
    with pytest.raises(AssertionError, match=r"result\[1\] is 2, expected 3"):
        assert_close(np.array([1, 2]), np.array([1, 3]), rtol=1)


def test_tolerance_from_the_shadow():
    """A sum that cancels gets a wide tolerance, exact arithmetic a narrow one."""
    f = Func("f", [TensorType(f32, (64,))], None, [TensorType(f32), TensorType(f32, (64,))])
    b = Builder(f.body)
    x, = f.args
    big = b.mul(b.exp(x), 1e6)
    b.op("func.return", [b.sum(b.sub(b.add(big, x), big), [0]), b.mul(x, 2.0)])
    x = np.random.default_rng(0).normal(size=64).astype(np.float32)
    (total, double), (wide, narrow) = reference_with_tolerance(Module([f]), "f", [x])
    assert wide > 0.1 and narrow < 1e-4
    assert_close(total, np.float32(x.sum()), atol=wide)
    assert_close(double, x * 2)


def test_tolerance_of_each_element_is_wide_only_where_the_function_is_steep():
    """sqrt(abs(sum)): where the sum cancels to nearly 0, the last bits of its terms are all there is."""
    f = Func("f", [TensorType(f32, (4, 64))], None, [TensorType(f32, (4,))])
    b = Builder(f.body)
    b.op("func.return", [b.sqrt(b.abs(b.sum(f.args[0], [1])))])
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    x[1, 63] = -np.sum(x[1, :63].astype(np.float64))                     # row 1 sums to about 1e-7
    y, = interpret(Module([f]), "f", [x])
    tolerance, = element_tolerances(Module([f]), "f", [x])
    assert tolerance[1] > 1e-3 and np.all(np.delete(tolerance, 1) < 1e-4)
    assert_close(np.sqrt(np.abs(x[:, ::-1].cumsum(1)[:, -1])), y, atol=tolerance)                # added up one by one, backwards
    with pytest.raises(AssertionError):
        assert_close(y + np.float32([0, 0, 2e-4, 0]), y, atol=tolerance)
