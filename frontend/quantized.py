"""Quantised weight types: a parameter declared `ternary[i, o]` is stored as f32 and read through the quantiser; gradients pass
straight through to the stored value. A product with one takes its rows in int8: see passes/quantize.py."""
from __future__ import annotations

from ..compiler.diagnostics import Span
from ..compiler.ir import Value
from .values import QuantType


def quantize_read(el, w: Value, weight: QuantType, span: Span) -> Value:
    """What a read of the parameter gives."""
    return el.b(span).op("nn.quantize", [w], {"weight": weight_name(weight)}).result


def weight_name(weight: QuantType) -> str:
    """As attributes of the IR spell it."""
    return f"pow2({weight.bits or 7})" if weight.name == "pow2" else weight.name
