"""The pipelines, as literal lists; each position that is not obvious has its reason."""
from __future__ import annotations

from .ir.opdef import LOOP, TENSOR


class _Stage:
    """A pass together with the stage its result is in."""

    def __init__(self, p, stage: str):
        self.inner, self.name, self.stage_after = p, p.name, stage
        self.exact = getattr(p, "exact", True)

    def apply(self, module):
        return self.inner.apply(module)


def learning(attention: bool = True) -> list:
    """nn -> tensor: learning becomes ordinary ops."""
    from ..passes.attention import Attention
    from ..passes.decompose import Decompose
    from ..passes.grad import Grad
    from ..passes.inline import Inline
    from ..passes.plasticity import Plasticity
    from ..passes.quantize import Quantize
    return [
        Plasticity(),            # first: it follows the layers' calls, which later passes rearrange
        Quantize(),              # before grad: gradients pass straight through a quantised product
        *([Attention()] if attention else []),                    # before softmax and its gradient become base ops
        Decompose(),             # before grad: nn ops have no gradient rules of their own
        Inline(moves=True),      # before grad: it sees what is a view of what, and keeps that
        _Stage(Grad(), TENSOR),
    ]


def optimising() -> list:
    """tensor -> tensor: fewer and cheaper ops, the same results."""
    from ..interp.evaluate import evaluate_op
    from ..passes.canonicalize import Canonicalize
    from ..passes.cse import Cse
    from ..passes.dce import Dce
    from ..passes.fold import Fold
    from ..passes.gather_products import GatherProducts
    from ..passes.hoist import Hoist
    from ..passes.inline import Inline
    from ..passes.integer_dots import IntegerDots
    from ..passes.merge_calls import MergeCalls
    return [
        Dce(),                   # gradients leave unused forward values
        Inline(),                # before the rest: it brings producers and consumers together
        MergeCalls(),            # after inlining: gradients and updates of what repeats are calls side by side
        Inline(continues=8),     # updates, where they continue the product
        Canonicalize(),
        Fold(evaluate_op),       # the interpreter's evaluator: folding is the definition itself
        IntegerDots(),           # before merging: a matrix that several products use is packed once
        Cse(),
        Hoist(),                 # after merging: products of a scan's inputs leave the loop once
        GatherProducts(),        # after hoisting: a product with an embedding of a scan's inputs has left the loop
        Canonicalize(),          # merging shows new identities
        Dce(),
    ]


def lowering(along_rows: bool = True) -> list:
    """tensor -> loop: kernels over explicit memory."""
    from ..passes.fuse import Fuse
    from ..passes.hoist_layouts import HoistLayouts
    from ..passes.lower_to_loops import LowerToLoops
    from ..passes.pipeline import Pipeline
    from ..passes.plan_buffers import PlanBuffers
    from ..passes.prefetch_rows import PrefetchRows
    from ..passes.schedule import Schedule
    from ..passes.stream_stores import StreamStores
    return [
        Fuse(along_rows=along_rows),
        Pipeline(),              # after fusing: a group goes to one stage as it is, which keeps its bits
        Schedule(),              # after fusing: groups are what runs, and their results what takes memory
        _Stage(LowerToLoops(serial=along_rows), LOOP),
        _Stage(HoistLayouts(), LOOP),
        StreamStores(),          # after lowering: what a kernel reads and writes is known
        *([PrefetchRows()] if along_rows else []),            # GPUs hide what memory takes behind other work-items
        PlanBuffers(),           # last: it fixes addresses
    ]


PIPELINES = {
    "nn": lambda: [],
    "definition": learning,                                       # what the interpreter runs: learning derived, nothing optimised
    "tensor": lambda: learning() + optimising(),
    "fused": lambda: learning() + optimising() + lowering()[:3],
    "loop": lambda: learning() + optimising() + lowering(),
    # for GPUs: a block of queries is one work-item's in the fused form, 20 times slower on an H200 than scores in memory (docs/ARCHITECTURE.md);
    # and chunks of rows are too few work-items
    "gpu": lambda: learning(attention=False) + optimising() + lowering(along_rows=False),
}


def passes() -> dict[str, type]:
    """Every pass by its command-line name."""
    return {p.name: p for p in PIPELINES["loop"]()}
