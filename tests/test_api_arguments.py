"""Conversion of what Python callers pass: lossless ranges, and errors that name the argument."""
from __future__ import annotations

import numpy as np
import pytest
from engram.arguments import ArgumentError, to_array
from engram.optim import Adam, Rule, expr, literal, optimizer, rule


@pytest.mark.parametrize("value, declared, dtype", [
    (1.5, "f32", "float32"), (2, "f32", "float32"), ([1, 2.5], "f32", "float32"), (np.float64(3), "f32", "float32"),
    (np.arange(3), "i32", "int32"), (np.arange(3, dtype=np.int8), "i64", "int64"), (True, "bool", "bool"),
    (np.zeros(2), "float", "float64"), (np.zeros(2, np.float16), "float", "float16"), ([0.5], "float", "float32"), (3, "float", "float32"),
    (np.arange(2, dtype=np.int16), "int", "int16"), ([1], "int", "int64"), ([1.0], "num", "float32"), (7, "key", "uint64"),
    (np.zeros(2, ">f4"), "f32", "float32"), ([], "f32", "float32"),
])
def test_conversion(value, declared, dtype):
    a = to_array("x", value, declared)
    assert a.dtype == np.dtype(dtype) and a.dtype.isnative
    assert np.array_equal(a, np.asarray(value).astype(dtype))


@pytest.mark.parametrize("value, declared, message", [
    (1e39, "f32", r"argument x: the value 1e\+39 does not fit f32"),
    (np.array([0, 2**31]), "i32", "argument x: values from 0 to 2147483648 do not fit i32"),
    (-1, "u8", "values from -1 to -1 do not fit u8"),
    (1.5, "i32", "expected i32, got f64"), (np.zeros((2, 3)), "int", r"expected int, got f64\[2, 3\]"),
    (1, "bool", "expected bool, got i64"), (True, "f32", "expected f32, got bool"), (True, "num", "expected num, got bool"),
    ("abc", "f32", "expected numbers, got str 'abc'"), (None, "f32", "expected numbers, got NoneType"), (abs, "f32", "got a function"),
    ([[1], [1, 2]], "f32", "not an array"), (np.array(["a"]), "f32", "expected numbers, got <U1"), (1j, "f32", "expected numbers, got complex128"),
    (2**70, "i64", "too large for 64 bits"), (2**24 + 1, "f32", "too large to be exact as f32"), (object(), "f32", "expected numbers, got object"),
])
def test_rejection_names_the_argument(value, declared, message):
    with pytest.raises(ArgumentError, match=message):
        to_array("x", value, declared)


def test_infinities_and_nans_pass():
    a = to_array("x", [np.inf, -np.inf, np.nan], "f32")
    assert np.array_equal(a, np.array([np.inf, -np.inf, np.nan], np.float32), equal_nan=True)


def test_large_exact_integers_pass_as_floats():
    assert to_array("x", 2**30, "f32") == np.float32(2**30)


def test_no_copy_when_nothing_changes():
    a = np.zeros(3, np.float32)
    assert to_array("x", a, "f32") is a


def test_literals():
    assert literal([1, 2.5, True, None, "a\"b", (3,), np.int64(4), np.float32(0.5)]) == '[1, 2.5, true, none, "a\\"b", (3,), 4, 0.5]'
    assert literal(expr("gelu")) == "gelu"
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            literal(bad)
    with pytest.raises(TypeError):
        literal({1: 2})


def test_optimizers():
    assert Adam(3e-3).text == "adam(lr = 0.003, b1 = 0.9, b2 = 0.999, eps = 1e-08)"
    assert rule("three_factor", classes=10, lr=0.1).text == "three_factor(classes = 10, lr = 0.1)"
    assert optimizer("SGD").name == "sgd" and optimizer(Adam()) == Adam() and isinstance(optimizer("lion"), Rule)
    with pytest.raises(ValueError, match="did you mean 'adam'"):
        optimizer("adan")
