"""The verifier. Checked, for every function, all errors at once:

1. structure: a block ends in its terminator and has it nowhere else; an op has the regions its row says; owners are right;
2. dominance: an operand is defined before its use in its block or an enclosing one (functions see only their own values);
3. types: the row's inference gives the recorded result types; returns match the function; calls match their callee; no recursion;
4. legality: every op is allowed at the module's stage; types are static from the tensor stage on; what must not stand inside a
   loop.parallel does not (docs/ARCHITECTURE.md, 4).
"""
from __future__ import annotations

from .core import Block, Func, Module, Op, Value
from .opdef import NN, OPS, TypeMismatch
from .types import BufferType, TensorType


class VerificationError(Exception):
    """Broken IR: always a bug of ours. `errors`: (Func name, Op | None, message)."""

    def __init__(self, errors, after: str | None = None):
        self.errors, self.after = errors, after
        head = f"invalid IR after pass {after}" if after else "invalid IR"
        lines = [f"  @{f}: {op.name + ': ' if op else ''}{msg}{f' ({op.loc})' if op is not None and op.loc else ''}" for f, op, msg in errors[:20]]
        more = [f"  ... and {len(errors) - 20} more"] if len(errors) > 20 else []
        super().__init__("\n".join([f"{head}: {len(errors)} error{'s' if len(errors) != 1 else ''}", *lines, *more]))


def verify(module: Module, after: str | None = None) -> None:
    """Raises VerificationError listing everything that is wrong; `after` names the pass that ran last."""
    errors: list = []
    stage = module.attrs.get("stage", NN)
    for key, f in module.funcs.items():
        if key != f.name:
            errors.append((key, None, f"registered as @{key} but named @{f.name}"))
        _Verifier(module, f, stage, errors).run()
    for cycle in _recursion(module):
        errors.append((cycle[0], None, "recursion: " + " -> ".join("@" + c for c in cycle)))
    for entry in module.attrs.get("entries", []):
        if entry not in module.funcs:
            errors.append((entry, None, "entry function does not exist"))
    if errors:
        raise VerificationError(errors, after)


class _Verifier:
    def __init__(self, module: Module, func: Func, stage: str, errors: list):
        self.module, self.func, self.stage, self.errors = module, func, stage, errors

    def error(self, op: Op | None, message: str) -> None:
        self.errors.append((self.func.name, op, message))

    def run(self) -> None:
        f = self.func
        self.block(f.body, set(), "func.return")
        if f.body.ops and f.returns.name == "func.return":
            got = [v.type for v in f.returns.operands]
            if got != list(f.result_types):
                self.error(f.returns, f"returns ({_text(got)}), declared ({_text(f.result_types)})")
        if any(isinstance(a.type, BufferType) for a in f.args):
            self.nesting(f.body, None)
        for pair in f.attrs.get("donate", []):
            n_args = len(f.args)
            n_res = f.attrs.get("n_outputs", len(f.result_types))
            if not (0 <= pair[0] < n_args and 0 <= pair[1] < n_res):
                self.error(None, f"donation {list(pair)} out of range")

    def block(self, block: Block, visible: set[Value], terminator: str) -> None:
        """`visible`: the values of enclosing blocks; the block's own are in it while it is looked at."""
        scope, own = visible, [v for v in block.args if v not in visible]
        scope.update(own)
        symbolic = self.stage == NN                            # dims may be
        if not symbolic:
            for a in block.args:
                self.static(None, a)
        if not block.ops or block.ops[-1].name != terminator:
            self.error(block.ops[-1] if block.ops else None, f"block does not end in {terminator}")
        for i, op in enumerate(block.ops):
            row = OPS.get(op.name)
            if row is None:
                self.error(op, "unknown op")
                scope.update(op.results)
                own += op.results
                continue
            if row.terminator and i + 1 < len(block.ops):
                self.error(op, "terminator in the middle of a block")
            if self.stage not in row.stages:
                self.error(op, f"not legal at stage {self.stage} (legal: {', '.join(sorted(row.stages))})")
            for j, v in enumerate(op.operands):
                if v not in scope:
                    self.error(op, f"operand {j} (%{v.name or '?'}: {v.type}) is used before its definition, or comes from elsewhere")
            if row.n_regions is not None and not row.n_regions <= len(op.regions) <= row.n_regions + row.optional_region:
                self.error(op, f"has {len(op.regions)} regions, expected {row.n_regions}")
            inner = set() if op.name == "tensor.fused" else scope
            for r in op.regions:
                self.block(r, inner, "scf.yield")
            self.types(op, row)
            for r in op.results:
                if r.owner is not op:
                    self.error(op, "a result's owner is another op")
                if not symbolic:
                    self.static(op, r)
            scope.update(op.results)
            own += op.results
        scope.difference_update(own)

    def nesting(self, block: Block, where: str | None) -> None:
        """`where`: None at the host level, "parallel" in an iteration, "lanes" in a loop whose iterations may be lanes of a vector."""
        for op in block.ops:
            if where and op.name in ("loop.parallel", "loop.call", "loop.copy", "loop.constant"):
                self.error(op, "not allowed inside a loop.parallel")
            if where == "lanes" and op.name == "loop.contract":
                self.error(op, "not allowed inside an independent loop or a reduction")
            if where and op.name == "loop.contract" and op.regions:
                self.error(op, "a contraction inside a loop.parallel has no epilogue: what follows is written after it")
            lanes = op.name == "loop.reduce" or (op.name == "loop.for" and op.attrs.get("independent"))
            inside = where and ("lanes" if lanes else where)
            for r in op.regions:
                self.nesting(r, "parallel" if op.name == "loop.parallel" else inside)

    def types(self, op: Op, row) -> None:
        if any(not r.ops for r in op.regions):
            return
        try:
            inferred = row.infer([v.type for v in op.operands], op.attrs, op.regions)
        except TypeMismatch as e:
            self.error(op, str(e))
            return
        except (KeyError, IndexError, AttributeError, TypeError) as e:
            self.error(op, f"bad attributes or operands: {type(e).__name__}: {e}")
            return
        got = [r.type for r in op.results]
        if list(inferred) != got:
            self.error(op, f"results are ({_text(got)}), inferred ({_text(inferred)})")
        if op.name in ("func.call", "loop.call"):
            callee = self.module.funcs.get(op.attrs.get("callee"))
            if callee is None:
                self.error(op, f"calls @{op.attrs.get('callee')}, which does not exist")
                return
            args, want = [v.type for v in op.operands], [a.type for a in callee.args]
            if op.name == "loop.call":
                args, want = ([(t.dtype, t.shape) if isinstance(t, BufferType) else t for t in ts] for ts in (args, want))
            if args != want:
                self.error(op, f"calls @{callee.name}({_text(want)}) with ({_text(args)})")
            if op.name == "func.call" and got != list(callee.result_types):
                self.error(op, f"@{callee.name} gives ({_text(callee.result_types)}), recorded ({_text(got)})")

    def static(self, op: Op | None, v: Value) -> None:
        if isinstance(v.type, TensorType) and not v.type.is_static:
            self.error(op, f"%{v.name or '?'}: {v.type} has symbolic dims at stage {self.stage}")


def _text(types) -> str:
    return ", ".join(map(str, types))


def _recursion(module: Module) -> list[list[str]]:
    """One cycle of calls through each function that is in one."""
    calls = {n: {op.attrs.get("callee") for op in f.walk() if op.name in ("func.call", "loop.call")} for n, f in module.funcs.items()}
    state: dict[str, int] = {}
    cycles: list[list[str]] = []

    def visit(n: str, path: list[str]) -> None:
        state[n] = 1
        for c in calls.get(n, ()):
            if state.get(c) == 1:
                cycles.append(path[path.index(c):] + [c] if c in path else [n, c])
            elif c in calls and c not in state:
                visit(c, path + [c])
        state[n] = 2

    for n in calls:
        if n not in state:
            visit(n, [n])
    return cycles
