"""prepack: functions that only read their weights take them packed.

Quantised products and convolutions with parameters (arguments that entry functions list in `weights`) get the packed codes and their scale as arguments of
their own, through calls; what is left reads no stored weight. An entry's attribute `packs` lists [argument, weight, contract, columns] for each pair of arguments
added: whoever runs it makes them once with `packer` (contract: a matrix's dim, or what a run of a filter is: compiler/ops/packed_conv.py). The driver applies
it where a program was built for inference; parameters that a step changes are not for it.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..compiler.ir.builder import Builder
from ..compiler.ir.core import Block, Func, Module, Op, Value, rewrite
from ..compiler.ir.types import TensorType, f32
from ..compiler.ops.packed import pack, packed_shape, product, weight_format
from ..compiler.ops.packed_conv import CHANNELS, TAPS, convolution, filter_types, geometry, pack_filter
from .quantize import parameters, source
from .util import callees_first

Want = tuple[int, str, int, bool]        # argument, weight, contract, whether its columns have scales of their own


@dataclass(frozen=True)
class Prepack:
    """Before and after: nn stage, products with cheap weights made by quantize. Entries take more arguments than before."""

    name: ClassVar[str] = "prepack"
    exact: ClassVar[bool] = True
    redefines: ClassVar[bool] = True

    def apply(self, module: Module) -> Module:
        known = parameters(module, carried=False)
        extra: dict[str, list[Want]] = {}
        for f in callees_first(module):
            extra[f.name] = _function(f, known.get(f.name, set()), extra)
        for name in module.attrs.get("entries", ()):
            if extra.get(name):
                module.funcs[name].attrs["packs"] = [list(w) for w in extra[name]]
        return module


def _function(f: Func, mine: set[int], extra: dict[str, list[Want]]) -> list[Want]:
    place = {f.args[i]: i for i in sorted(mine)}
    wanted: dict[Want, list[Value]] = {}

    def packed(v: Value, weight: str, contract: int, columns: bool) -> list[Value]:
        i = place[source(v)[0]]
        want = (i, weight, contract, columns)
        if want not in wanted:
            types = _types(weight, f.args[i].type.shape, contract, columns)
            wanted[want] = [Value(t, f.body, f"{f.args[i].name}.{part}") for t, part in zip(types, ("packed", "scale"))]
        return wanted[want]

    def visit(op: Op, out: Block) -> list[Value] | None:
        if op.name == "func.call" and extra.get(op.attrs["callee"]):
            op.operands += [x for i, *how in extra[op.attrs["callee"]] for x in packed(op.operands[i], *how)]
        if op.name not in ("nn.quantized_dot", "nn.quantized_conv") or source(op.operands[1])[0] not in place or source(op.operands[1])[1]:
            return None
        weight = op.attrs["weight"]
        if op.name == "nn.quantized_conv":
            g = geometry(*(v.type for v in op.operands), op.attrs)
            return [convolution(Builder(out, op.loc), op.operands[0], *packed(op.operands[1], weight, g.run_is, False), weight, g)]
        codes, scale = packed(op.operands[1], weight, op.attrs["contract"], bool(op.attrs.get("columns")))
        return [product(Builder(out, op.loc), op.operands[0], codes, scale, weight, op.result.type.shape[-1])]

    rewrite(f.body, visit)
    new = [x for pair in wanted.values() for x in pair]
    if new and "arg_names" in f.attrs:
        f.attrs["arg_names"] = [*f.attrs["arg_names"], *(x.name for x in new)]
    f.body.args += new
    return list(wanted)


def _types(weight: str, shape: tuple[int, ...], contract: int, columns: bool) -> list[TensorType]:
    """Of the packed codes and the scale."""
    if contract in (TAPS, CHANNELS):
        return filter_types(weight, shape, contract)
    fmt, n = weight_format(weight)[0], shape[1 - contract]
    return [TensorType(fmt.memory[0], packed_shape(fmt, shape[contract], n)), TensorType(f32, (n,) if columns else ())]


def packer(type: TensorType, weight: str, contract: int, columns: bool) -> Module:
    """A module whose entry `pack` makes the packed codes and the scale of a matrix or a filter."""
    f = Func("pack", [type], ["w"])
    b, w = Builder(f.body), f.args[0]
    codes, scale = pack_filter(b, w, weight, contract) if contract in (TAPS, CHANNELS) else pack(b, w, weight, contract, columns)
    f.body.append(Op("func.return", [codes, scale], {}, (), ()))
    f.result_types = [codes.type, scale.type]
    return Module([f], {"stage": "nn", "entries": ["pack"]})
