"""The pass lower-to-loops: tensor ops -> kernels over explicit buffers.

Before: tensor stage (base ops, tensor.fused groups, calls, control flow). After: loop stage; every function takes its arguments' and
its results' buffers (docs/ARCHITECTURE.md section 4); temporaries are loop.alloc without addresses (plan-buffers gives them).

`Body` walks one list of tensor ops (a function's body or a region) and decides where each value lives: results are written
straight to where they are wanted, donated memory is reused where that is certainly safe, movement of whole arrays is a view.
Kernels are made by lower_kernels.py, ops that are kernels of their own by lower_roots.py, control flow and calls by lower_control.py.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..compiler.ir.core import Block, Func, Loc, Module, Op, Value
from ..compiler.ir.dims import product
from ..compiler.ir.opdef import LOOP
from ..compiler.ir.types import BufferType, TensorType
from . import lower_rules  # noqa: F401  (registers its rules)
from .cost import FAR, SEQUENTIAL
from .donate import infer_donations
from .lower_buffers import MOVES, Host, Place, Splat, Storage, moved, reshape_strides, shifted, whole
from .lower_elemental import BufferLeaf, Leaf, NumberLeaf, ScalarLeaf, can_pull
from .lower_inplace import in_place, retarget
from .lower_kernels import Group, build
from .lower_products import product_kernel, root_product
from .lower_windows import unfolded
from .util import callees_first


@dataclass(frozen=True)
class LowerToLoops:
    """Before: tensor stage. After: loop stage, memory not yet planned. Results are the interpreter's within the stated tolerances.
    `serial`: for a machine on which a short loop on one thread is no loss."""

    serial: bool = True
    name: ClassVar[str] = "lower-to-loops"
    exact: ClassVar[bool] = False

    def apply(self, module: Module) -> Module:
        infer_donations(module)
        out = Module(attrs={**module.attrs, "stage": LOOP})
        order = {f.name: f for f in callees_first(module)}
        lowered = {name: lower_function(f, module, self.serial) for name, f in order.items()}
        for name in module.funcs:
            out.add(lowered[name])
        return out


def lower_function(func: Func, module: Module, serial: bool = True) -> Func:
    """One function: buffers of the arguments, then of the results."""
    term = func.returns
    args = [BufferType(a.type.dtype, a.type.shape) for a in func.args]
    results = [BufferType(t.dtype, t.shape) for t in func.result_types]
    arg_names = list(func.attrs.get("arg_names") or [a.name for a in func.args])
    result_names = list(func.attrs.get("result_names") or [])
    names = [n or f"arg{i}" for i, n in enumerate(arg_names)] + [f"out_{n}" for n in result_names or range(len(results))]
    new = Func(func.name, args + results, names, [], {**func.attrs, "n_inputs": len(args), "n_outputs": len(results)}, func.loc)
    params, outs = new.args[:len(args)], new.args[len(args):]
    env: dict[Value, Place] = {a: whole(p) for a, p in zip(func.args, params)}
    donated: dict[int, Value] = {}
    for a, r in func.attrs.get("donate", []):
        # The argument is read through the result's parameter, so that one memory has one name inside the function.
        env[func.args[a]] = replace_shape(whole(outs[r]), func.args[a].type)
        donated[r] = func.args[a]
    body = Body(Host(new.body), func.body, env, [whole(o) for o in outs], donated, module, serial)
    body.run()
    new.body.append(Op("func.return", [], {}, (), (), term.loc))
    return new


def replace_shape(s: Storage, t: TensorType) -> Storage:
    """A contiguous storage seen as an argument of type t."""
    if s.shape != t.shape or s.dtype is not t.dtype:
        raise ValueError(f"a donated argument {t} and its result {s.dtype}{list(s.shape)} differ")
    return s


class Body:
    """Lowers `block`. `env`: where visible values are; `results[r]`: memory for the terminator's operand r; `donated[r]`: the block
    argument that lives in results[r] when the block starts."""

    def __init__(self, host: Host, block: Block, env: dict[Value, Place], results: list[Storage], donated: dict[int, Value], module: Module,
                 serial: bool):
        self.host, self.block, self.env, self.results, self.donated, self.module, self.serial = host, block, env, results, donated, module, serial
        self.placed = [False] * len(results)
        self.owned: set[Value] = set()                 # temporaries of this block: may be overwritten when their value dies
        self.rep: dict[Value, Value] = {}              # a view's value -> the value whose memory it shows
        self.last: dict[Value, int] = {}               # representative -> position of its last use
        self.wanted: dict[Value, list[int]] = {}       # value -> results it should be written to directly
        self.users: dict[Value, list[Op]] = {}         # value -> ops of this block that use it, an op once per use
        self.concats: dict[Op, Storage] = {}           # memory of concatenations that are not lowered yet, made for their parts
        self.folds: dict[Op, Storage] = {}             # memory of windows put side by side that is written before they are lowered
        self.analyse()

    def analyse(self) -> None:
        local: set[Value] = set(self.block.args)
        carried = set(self.donated.values())
        self.early = {r: v for r, v in enumerate(self.block.terminator.operands) if v in carried and r not in self.donated}
        for pos, op in enumerate(self.block.ops):
            for v in _all_operands(op) if op is not self.block.terminator else [v for r, v in enumerate(op.operands) if r not in self.early]:
                self.last[self.rep.get(v, v)] = pos
                self.users.setdefault(v, []).append(op)
            local.update(op.results)
            if op.name in MOVES:
                self.rep[op.result] = self.rep.get(op.operands[0], op.operands[0])
        for r, v in enumerate(self.block.terminator.operands):
            while v in local and isinstance(v.owner, Op):    # a reshape is a view of what is made there, or else is made there itself
                self.wanted.setdefault(v, []).append(r)
                v = v.owner.operands[0] if v.owner.name in ("tensor.reshape", "tensor.stop_gradient") else None
        through: set[Value] = set()
        for pos in reversed(range(len(self.block.ops))):       # what an `if` hands through may already be made where its result goes
            op = self.block.ops[pos]
            if op.name == "scf.if":
                for i, result in enumerate(op.results):
                    for v in dict.fromkeys(r.terminator.operands[i] for r in op.regions):
                        if v in local and isinstance(v.owner, Op) and v.owner.name not in MOVES and self.last.get(v) == pos \
                                and v not in through and self.wanted.get(result):
                            through.add(v)
                            self.wanted.setdefault(v, []).append(self.wanted[result][0])

    def run(self) -> None:
        from .lower_attention import ATTENTION
        from .lower_control import CONTROL
        from .lower_roots import ROOTS
        from .lower_scatter import SCATTER
        for r, v in self.early.items():                # old carried values that are results as well: copied before they are overwritten
            self.written(self.env[v], self.results[r], self.block.terminator.loc)
            self.placed[r] = True
        for pos, op in enumerate(self.block.ops[:-1]):
            special = CONTROL.get(op.name) or ROOTS.get(op.name) or SCATTER.get(op.name) or ATTENTION.get(op.name)
            if op in self.folds:
                self.env[op.result] = self.folds[op]
            elif op.name == "tensor.constant":
                self.env[op.result] = self.constant(op)
            elif op.name in MOVES and (place := moved(op, self.env[op.operands[0]])) is not None:
                self.env[op.result] = place
            elif op.name == "tensor.fused":
                self.fused(op, pos)
            elif special is not None:
                special(self, op, pos)
            elif can_pull(op.name):
                self.group([op], list(op.results), pos, self.leaf, op.loc)
            else:
                raise NotImplementedError(f"{op.name} has no lowering to loops")
        self.finish()

    # ---- where values are and go ----
    def dies(self, v: Value, pos: int) -> bool:
        """Whether nothing after `pos` (in this block) reads v's memory."""
        return self.last.get(self.rep.get(v, v), -1) <= pos

    def unused_by(self, v: Value, op: Op, slots: tuple[int, ...]) -> bool:
        """Whether op reads v's memory through no operand but those in `slots`, nor inside its regions."""
        root = self.rep.get(v, v)
        inner = [u for r in op.regions for o in r.walk() for u in o.operands]
        return all(self.rep.get(u, u) is not root for i, u in enumerate(op.operands) if i not in slots) and \
            all(self.rep.get(u, u) is not root for u in inner)

    def free_result(self, r: int, pos: int) -> bool:
        """Whether result r's memory may be overwritten at `pos`, read by nobody from then on (the op there included)."""
        arg = self.donated.get(r)
        return arg is None or self.last.get(arg, -1) < pos

    def reusable(self, v: Value, op: Op, slot: int, pos: int) -> Storage | None:
        """v's own memory, when op (its operand `slot`) may overwrite it: a temporary of this block that dies here."""
        place = self.env[v]
        if isinstance(place, Storage) and place.buffer in self.owned and place.contiguous and place.offset == 0 \
                and product(place.shape) == place.buffer.type.numel and self.dies(v, pos) and self.unused_by(v, op, (slot,)):
            return place
        return None

    def shown(self, v: Value) -> Value | None:
        """The value whose memory v shows, when v shows all of it in order: only then v is already there when that memory is taken
        over. (Of a transposed square matrix, written to its own memory, elements would be overwritten before they are read.)"""
        root = self.rep.get(v, v)
        if root is v:
            return root
        mine, its = self.env[v], self.env[root]
        return root if isinstance(mine, Storage) and isinstance(its, Storage) and mine == self.as_type(its, v.type) else None

    def destination(self, v: Value, pos: int, loc: Loc | None, over: Value | None = None) -> Storage:
        """Memory for a new value: the first result place that is free, else a temporary. `over`: a block argument whose memory may
        be taken although the op reads it (it works in place)."""
        for r in self.wanted.get(v, ()):
            arg = self.donated.get(r)
            if not self.placed[r] and (self.free_result(r, pos) or (arg is not None and arg is over and self.last.get(arg, -1) <= pos)):
                self.placed[r] = True
                return self.as_type(self.results[r], v.type)
        return self.temporary(v.type, loc)

    def temporary(self, type: TensorType, loc: Loc | None = None) -> Storage:
        s = self.host.alloc(type, loc)
        self.owned.add(s.buffer)
        return s

    def product_place(self, v: Value, pos: int, loc: Loc | None) -> Storage:
        """Memory for a contraction's result; where it is only used transposed, in that layout, and where that is only a part of a
        concatenation, in that part (its rows have to be contiguous)."""
        moves: list[Op] = []
        end = v
        while end not in self.wanted and len(self.users.get(end, ())) == 1 and self.users[end][0].name in ("tensor.transpose", "tensor.reshape"):
            moves.append(self.users[end][0])
            end = moves[-1].result
        s = self.part_of_concat(end, pos, loc)
        while s is None and moves and moves[-1].name == "tensor.reshape":      # a reshape of new memory says nothing
            end = moves.pop().operands[0]
        placed = list(self.placed)
        if s is None and moves:
            s = self.destination(end, pos, loc)
        for op in reversed(moves):
            shape, perm = op.operands[0].type.shape, op.attrs.get("perm")
            strides = reshape_strides(s, shape) if perm is None else tuple(s.strides[perm.index(d)] for d in range(len(perm)))
            s = None if strides is None else Storage(s.buffer, s.offset, shape, strides)
            if s is None:
                break
        if s is None or (s.shape and s.strides[-1] != 1 and s.shape[-1] != 1):
            self.placed[:] = placed                            # the result's memory that was tried above is not written after all
            return self.destination(v, pos, loc)
        return s

    def part_of_concat(self, v: Value, pos: int, loc: Loc | None) -> Storage | None:
        """The part of a concatenation's memory that v is to be, when that is v's only use."""
        users = self.users.get(v, ())
        if v in self.wanted or len(users) != 1 or users[0].name != "tensor.concat":
            return None
        op = users[0]
        place = self.concats.get(op)
        if place is None:
            place = self.concats[op] = self.destination(op.result, pos, loc)
        d = op.attrs["dim"]
        before = sum(x.type.shape[d] for x in op.operands[:op.operands.index(v)])
        return Storage(place.buffer, shifted(self.host, place, before * place.strides[d]), v.type.shape, place.strides)

    def as_type(self, s: Storage, type: TensorType) -> Storage:
        return Storage(s.buffer, s.offset, type.shape, reshape_strides(s, type.shape))

    def constant(self, op: Op) -> Place:
        t, value = op.result.type, op.attrs["value"]
        if not isinstance(value, np.ndarray):
            return Splat(value, t.dtype, t.shape)
        if value.size and value.size <= 1 << 16 and value.tobytes() == value.ravel()[:1].tobytes() * value.size:
            return Splat(value.ravel()[0].item(), t.dtype, t.shape)
        attrs = {"type": BufferType(t.dtype, t.shape), "value": value}
        return whole(self.host.op("loop.constant", (), attrs, (), op.loc).result)

    # ---- reading ----
    def leaf(self, v: Value) -> Leaf:
        return self.leaf_of(self.env[v])

    def leaf_of(self, place: Place) -> Leaf:
        if isinstance(place, Splat):
            return ScalarLeaf(place.value) if isinstance(place.value, Value) else NumberLeaf(place.value, place.dtype)

        def reshaped(shape):
            strides = reshape_strides(place, shape)
            return None if strides is None else self.host.buffer(Storage(place.buffer, place.offset, shape, strides))

        return BufferLeaf(place.shape, lambda: self.host.buffer(place), reshaped)

    def in_memory(self, v: Value, loc: Loc | None) -> Storage:
        """v as a storage of any strides (numbers are written out)."""
        place = self.env[v]
        if isinstance(place, Splat):
            place = self.env[v] = self.written(place, self.temporary(v.type, loc), loc)
        return place

    def contiguous(self, v: Value, loc: Loc | None) -> Storage:
        """v as a row-major storage, copied when it is not one."""
        place = self.env[v]
        if not (isinstance(place, Storage) and place.contiguous):
            place = self.env[v] = self.written(place, self.temporary(v.type, loc), loc)
        return place

    def scalar(self, v: Value, loc: Loc | None) -> Value:
        """A rank-0 value as a host-level scalar."""
        place = self.env[v]
        if isinstance(place, Splat):
            if isinstance(place.value, Value):
                return place.value
            return self.host.scalar("scalar.constant", (), {"value": place.value, "dtype": place.dtype})
        return self.host.load(place, loc)

    def written(self, source: Place, to: Storage, loc: Loc | None) -> Storage:
        """Copy `source` to `to` (which it does not overlap)."""
        if isinstance(source, Storage) and source.contiguous and to.contiguous:
            if product(to.shape):
                strides = reshape_strides(source, to.shape)
                self.host.op("loop.copy", [self.host.buffer(to), self.host.buffer(Storage(source.buffer, source.offset, to.shape, strides))], None, (), loc)
            return to
        v = Value(TensorType(to.dtype, to.shape))
        build(Group([], [(v, [to])], lambda _: self.leaf_of(source), loc), self.host, self.temporary)
        return to

    # ---- kernels ----
    def fused(self, op: Op, pos: int) -> None:
        """A tensor.fused: its region is one group."""
        region = op.regions[0]
        outer = dict(zip(region.args, op.operands))
        inner: dict[Value, Value] = {}                 # yielded value -> first result it is
        outputs: list[Value] = []
        for r, y in zip(op.results, region.terminator.operands):
            if y in outer or y in inner:               # an operand handed through, or a value yielded twice
                continue
            inner[y] = r
            outputs.append(y)
        for y in inner:
            same = [res for res, z in zip(op.results, region.terminator.operands) if z is y]
            self.wanted[y] = [w for s in same for w in self.wanted.get(s, [])]
        spots = {y: spot for y, r in inner.items() if op.attrs.get("rows") and (spot := unfolded(self, r, pos, op.loc)) is not None}
        self.group(region.ops[:-1], outputs, pos, lambda v: self.leaf(outer[v]), op.loc, op, outer, spots)
        for r, y in zip(op.results, region.terminator.operands):
            self.env[r] = self.env[outer.get(y, y)]

    def group(self, ops: list[Op], outputs: list[Value], pos: int, leaf: Callable[[Value], Leaf], loc: Loc | None, fused: Op | None = None,
              outer: dict[Value, Value] | None = None, spots: dict[Value, Storage] | None = None) -> None:
        """Lower a group (`outer`: what its region's arguments stand for; `spots`: where to write values, if not to memory of their own); donated memory is written in place when the finished kernels turn out to allow it."""
        places: dict[Value, list[Storage]] = {}
        risky: list[tuple[Value, int, Storage]] = []
        for v in outputs:
            out = places[v] = []
            for r in self.wanted.get(v, ()):
                arg = self.donated.get(r)
                if self.placed[r] or (arg is not None and self.last.get(arg, -1) > pos):
                    continue
                place = self.as_type(self.results[r], v.type)
                if not self.free_result(r, pos):
                    risky.append((v, r, place))
                self.placed[r] = True
                out.append(place)
            if not out:
                out.append(spots[v] if spots and v in spots else self.temporary(v.type, loc))
        a = fused.attrs if fused is not None else {}
        if self.serial and "rows" in a:
            ops, leaf = self.turned(ops, leaf, outer or {}, loc)
        g = Group(ops, [(v, places[v]) for v in outputs], leaf, loc, tuple(a["domain"]) if "domain" in a else None, a.get("rows"), a.get("split", 0), a.get("chunks", 0))
        dot = root_product(ops)
        if dot is not None:
            kernels = [self.product(g, dot, outer or {})]
        else:
            kernels = build(g, self.host, self.temporary)
        for v, r, place in risky:
            if not all(in_place(k, place.buffer, self.host) for k in kernels):
                self.placed[r] = False
                spare = retarget(kernels, place, lambda t=v.type: self.temporary(t, loc), self.host)
                places[v][places[v].index(place)] = spare
        for v in outputs:
            self.env[v] = places[v][0]

    def turned(self, ops: list[Op], leaf: Callable[[Value], Leaf], outer: dict[Value, Value], loc: Loc | None) -> tuple[list[Op], Callable[[Value], Leaf]]:
        """The ops of a rows group without transposes that make rows of what lies far apart, and its leaves with their results, copied: a
        row is gone through several times, a copy is made in tiles."""
        copies: dict[Value, Storage] = {}
        for op in ops:
            if op.name == "tensor.transpose" and isinstance(x := self.env.get(outer.get(op.operands[0])), Storage):
                place = moved(op, x)
                if place.shape and place.shape[-1] > 1 and place.strides[-1] >= FAR and op.result.type.numel > SEQUENTIAL:
                    copies[op.result] = self.written(place, self.temporary(op.result.type, loc), loc)
        if not copies:
            return ops, leaf
        return [op for op in ops if not op.results or op.results[0] not in copies], lambda v: self.leaf_of(copies[v]) if v in copies else leaf(v)

    def product(self, g: Group, dot: Op, outer: dict[Value, Value]) -> Op:
        """The kernel of a group of kind "product"."""
        inputs = dict.fromkeys(outer.get(v, v) for op in g.ops for v in op.operands if v not in g.producers)
        operands = [self.in_memory(outer.get(v, v), dot.loc) for v in dot.operands]
        read = {place.buffer for v in inputs if isinstance(place := self.env[v], Storage)}
        return product_kernel(self.host, dot, operands, g, read, self.temporary)

    # ---- the end ----
    def finish(self) -> None:
        """Copy the results that are not yet where they belong. Sources that these copies would overwrite are saved first."""
        term = self.block.terminator
        pending = [(self.env[v], self.results[r]) for r, v in enumerate(term.operands) if not self.placed[r]]
        pending = [(s, t) for s, t in pending if not (isinstance(s, Storage) and s == self.as_type(t, TensorType(t.dtype, s.shape)))]
        targets = {t.buffer for _, t in pending}
        saved = []
        for s, t in pending:
            if isinstance(s, Storage) and s.buffer in targets and len(pending) + sum(self.placed) > 1:
                s = self.written(s, self.temporary(TensorType(s.dtype, s.shape), term.loc), term.loc)
            saved.append((s, t))
        for s, t in saved:
            self.written(s, t, term.loc)


def _all_operands(op: Op):
    """Operands of the op and of everything in its regions."""
    yield from op.operands
    for r in op.regions:
        for inner in r.walk():
            yield from inner.operands
