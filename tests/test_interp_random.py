"""Random numbers: Philox against the published vectors, and every derived distribution bit by bit."""
import numpy as np
import pytest
from engram.compiler.ir import bf16, f16, f32, f64
from engram.compiler.ops import OPS
from engram.compiler.ops.common import S
from engram.interp.compare import assert_close
from engram.interp.interpreter import interpret
from engram.interp.semantics_random import bits, box_muller, fold_in, normal, philox, uniform
from engram.passes.decompose import Decompose
from helpers import make_op_module, sample_arrays

# Random123's kat_vectors for philox4x32-10: counter, key, result
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


@pytest.mark.parametrize("counter, key, result", KNOWN)
def test_philox_known_answers(counter, key, result):
    assert philox(key, counter) == result


def test_bits_are_counter_based():
    key = 2**35 + 17
    assert bits(key, 11) == bits(key, 400)[:11]
    assert bits(key, 8)[4:] == list(philox((17, 8), (1, 0, 0, 0)))
    assert fold_in(key, 3) == philox((17, 8), (3, 0, 1, 0))[0] | philox((17, 8), (3, 0, 1, 0))[1] << 32
    assert fold_in(key, -1) == philox((17, 8), (2**32 - 1, 2**32 - 1, 1, 0))[0] | philox((17, 8), (2**32 - 1, 2**32 - 1, 1, 0))[1] << 32


@pytest.mark.parametrize("dtype", [f32, f64, f16, bf16], ids=str)
@pytest.mark.parametrize("name", ["random.uniform", "random.normal"])
def test_derived_rows_equal_their_decomposition_bit_by_bit(name, dtype):
    sample = S(("u64[3]", 0, 2**63), shape=[401], dtype=dtype)
    keys = sample_arrays(sample)
    direct, = interpret(make_op_module(name, sample), "f", keys)
    expanded = Decompose().apply(make_op_module(name, sample))
    assert all(OPS[op.name].decompose is None for op in expanded.walk())
    assert_close(interpret(expanded, "f", keys)[0], direct, bits_exact=True)
    assert direct.shape == (3, 401)


def test_extreme_words():
    assert box_muller(0xFFFFFFFF, 0) == 0 and np.signbit(box_muller(0xFFFFFFFF, 0)) == np.False_
    assert 5.7 < box_muller(0, 0) < 5.8                   # u1 = 2^-24
    assert -5.8 < box_muller(0, 0x80000000) < -5.7
    assert abs(box_muller(0, 0x40000000)) < 1e-6


def test_normal_is_box_muller_and_standard():
    w = bits(9, 40000)
    u1, u2 = ((np.array(h) >> 8) for h in (w[:20000], w[20000:]))
    want = np.sqrt(-2 * np.log((u1 + 1) * 2.0**-24)) * np.cos(2 * np.pi * u2 * 2.0**-24)
    got = np.array(normal(9, 20000))
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-6)
    assert abs(got.mean()) < 0.02 and abs(got.std() - 1) < 0.02 and abs((got**4).mean() - 3) < 0.15


def test_uniform_range():
    u = np.array(uniform(4, 20000))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01 and abs(u.std() - 12**-0.5) < 0.005
