"""When two kernels are the same: a key that covers all that code is made from, names and places in the source left out."""
from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from ...compiler.ir.core import Block, Op, Value
from .lanes import constant


def structure(op: Op) -> Hashable | None:
    """The key of a kernel: its ops, attributes and types, values by the order in which they occur, constants from outside by what
    they are. None where an attribute is an array."""
    numbers: dict[Value, int] = {}
    out: list[Hashable] = []

    def attributes(o: Op) -> None:
        for name, x in o.attrs.items():
            out.append(name)
            out.append(repr(x) if isinstance(x, float | list | tuple | dict) else x)

    def visit(block: Block) -> None:
        for a in block.args:
            numbers[a] = len(numbers)
            out.append(a.type)
        for o in block.ops:
            out.append(o.name)
            for v in o.operands:
                n = numbers.get(v)
                if n is None:
                    numbers[v] = len(numbers)
                    out.append((v.type, repr(constant(v))))
                else:
                    out.append(n)
            attributes(o)
            for r in o.regions:
                visit(r)
            for v in o.results:
                numbers[v] = len(numbers)
                out.append(v.type)
        out.append(None)
    attributes(op)
    for r in op.regions:
        visit(r)
    return None if any(isinstance(x, np.ndarray) for x in out) else tuple(out)
