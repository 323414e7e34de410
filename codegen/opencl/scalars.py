"""One scalar op as a C expression, with exactly the semantics of the op table: wrapping integers, NaN-propagating extremes, saturating
casts, one rounding per step for f16 and bf16. Statements, loops and memory are kernel.py's.
"""
from __future__ import annotations

from ...compiler.ir.types import DType
from .ctext import MEMORY, REGISTER, UNSIGNED
from .library import BUILTIN, Helpers

_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_WRAPPING = {"add": "+", "sub": "-", "mul": "*"}
_BITWISE = {"and": "&", "or": "|", "xor": "^"}
# results that are a value of the dtype already: no rounding for f16 and bf16
_EXACT = {"neg", "abs", "sign", "floor", "ceil", "round", "trunc", "max", "min", "fmod"}
_WHOLE = {"floor": "floor", "ceil": "ceil", "round": "rint", "trunc": "trunc"}


class Unsupported(Exception):
    """An op that cannot be emitted: a bug of ours, or a module of another stage."""


def round_to(expr: str, dtype: DType, helpers: Helpers) -> str:
    """A float expression brought to f16 or bf16; others stay."""
    return f"{helpers.use(f'{dtype.name}_round')}({expr})" if dtype.name in ("f16", "bf16") else expr


def scalar_expression(name: str, dtype: DType, attrs: dict, xs: list[str], result: DType, helpers: Helpers) -> str:
    """The C expression of `scalar.<name>` on register operands `xs` of `dtype` (for select: of the chosen values)."""
    if name == "compare":
        return f"{xs[0]} {_COMPARE[attrs['predicate']]} {xs[1]}"
    if name == "select":
        return f"{xs[0]} ? {xs[1]} : {xs[2]}"
    if name == "cast":
        return cast(xs[0], dtype, result, helpers)
    if name == "bitcast":
        return _bitcast(xs[0], dtype, result, helpers)
    if dtype.is_float:
        return _float(name, dtype, xs, helpers)
    if dtype.is_bool:
        return _bool(name, xs)
    return _int(name, dtype, xs, helpers)


def _float(name: str, dtype: DType, xs: list[str], h: Helpers) -> str:
    t = REGISTER[dtype.name]
    double = dtype.name == "f64"
    x = xs[0]
    y = xs[1] if len(xs) > 1 else ""

    def divide(a: str, b: str) -> str:
        fn = None if double else h.divide()
        return f"{fn}({a}, {b})" if fn else f"{a} / {b}"

    def root(a: str) -> str:
        return f"{'sqrt' if double else h.root()}({a})"

    def rounded(e: str) -> str:
        return round_to(e, dtype, h)

    if name in _WRAPPING:
        return rounded(f"{x} {_WRAPPING[name]} {y}")
    if name == "div":
        return rounded(divide(x, y))
    if name == "floordiv":
        return f"floor({rounded(divide(x, y))})"
    if name in ("max", "min", "sign"):
        return f"{h.use(name, t)}({', '.join(xs)})"
    if name == "mod":
        return rounded(f"{h.use('fmodulo', t)}({x}, {y})")
    if name == "fmod":
        return f"fmod({x}, {y})"
    if name == "neg":
        return f"-{x}"
    if name == "abs":
        return f"fabs({x})"
    if name in _WHOLE:
        return f"{_WHOLE[name]}({x})"
    if name == "sqrt":
        return rounded(root(x))
    if name == "rsqrt":
        one = "1.0" if double else "1.0f"
        return rounded(divide(one, rounded(root(x))))
    if name in BUILTIN:
        return rounded(f"{h.math(name, double)}({', '.join(xs)})")
    raise Unsupported(f"scalar.{name} on {dtype}")


def _bool(name: str, xs: list[str]) -> str:
    if name == "not":
        return f"!{xs[0]}"
    if name in ("and", "min"):
        return f"{xs[0]} && {xs[1]}"
    if name in ("or", "max"):
        return f"{xs[0]} || {xs[1]}"
    if name == "xor":
        return f"{xs[0]} != {xs[1]}"
    raise Unsupported(f"scalar.{name} on bool")


def _int(name: str, dtype: DType, xs: list[str], h: Helpers) -> str:
    t, u = REGISTER[dtype.name], UNSIGNED[dtype.name]
    signed = dtype.kind == "int"
    x = xs[0]
    y = xs[1] if len(xs) > 1 else ""
    if name in _WRAPPING:
        return f"({t})(({u}){x} {_WRAPPING[name]} ({u}){y})"
    if name == "neg":
        return f"({t})(({u})0 - ({u}){x})"
    if name == "abs":
        return f"{x} < 0 ? ({t})(({u})0 - ({u}){x}) : {x}" if signed else x
    if name == "sign":
        return f"({t})(({x} > 0) - ({x} < 0))" if signed else f"({t})({x} != 0)"
    if name == "not":
        return f"({t})(~{x})"
    if name in _BITWISE:
        return f"({t})({x} {_BITWISE[name]} {y})"
    if name in ("max", "min"):
        return f"{x} {'>' if name == 'max' else '<'} {y} ? {x} : {y}"
    if name == "floordiv":
        return f"{h.use('floordiv' if signed else 'udiv', t)}({x}, {y})"
    if name == "mod":
        return f"{h.use('modulo' if signed else 'urem', t)}({x}, {y})"
    if name == "fmod":
        return f"{h.use('remainder' if signed else 'urem', t)}({x}, {y})"
    if name == "pow":
        return f"{h.use('ipow', t)}({x}, {y})"
    if name in ("shl", "shr"):
        return f"{h.use(name, t)}({x}, {y})"
    raise Unsupported(f"scalar.{name} on {dtype}")


def cast(x: str, source: DType, target: DType, h: Helpers) -> str:
    if source is target:
        return x
    s, t = REGISTER[source.name], REGISTER[target.name]
    if target.is_bool:
        return f"{x} != 0"
    if target.is_int:
        if source.is_float:
            return f"{h.saturate(s, t)}({x})"
        return f"({t}){x}"
    if target.name in ("f16", "bf16"):
        if source.name == "f64":
            x = f"{h.use('odd_double')}({x})"
        elif source.bits >= 32 and source.is_int:
            wide = "ulong" if source.kind == "uint" else "long"
            x = f"{h.use('odd_' + wide)}(({wide}){x})"
        elif not source.is_float:
            x = f"(float){x}"
        return round_to(x, target, h)
    return f"({t}){x}"


def _bitcast(x: str, source: DType, target: DType, h: Helpers) -> str:
    if source is target:
        return x
    if source.is_bool:
        return f"({REGISTER[target.name]})({x} ? 1 : 0)"
    if target.is_bool:
        return f"{x} != 0"
    if source.name in ("f16", "bf16"):
        x, source_memory = f"{h.use(source.name + '_bits')}({x})", "ushort"
    else:
        source_memory = MEMORY[source.name]
    if target.name in ("f16", "bf16"):
        return f"{h.use(target.name + '_value')}((ushort){x})"
    t = MEMORY[target.name]
    return x if t == source_memory else f"as_{t}({x})"
