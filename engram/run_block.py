"""Run blocks: host statements in order.  What is done with strings, files, tokenizers and printing happens here; every other expression
is compiled once per types of what it uses (frontend/host.py) and runs on the backend.

An expression's host parts (`text.encode(prompt)`, `data.x`) are evaluated first, left to right, and stand as arguments in the rest.
`if`, `while` and `scan` run here when something in them is the host's, else they are compiled whole.
"""
from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import host_objects as H
from .cheap import checked, mark_call
from .compiler.diagnostics import CompileError, Diagnostic, did_you_mean, error
from .compiler.ir import TensorType
from .datasets import Dataset, DatasetError
from .frontend import ast as A
from .frontend.host import UNIT, Closure, elaborate_expression, walk_layers
from .frontend.train_settings import literal
from .frontend.trees import unflatten
from .frontend.values import LayerInstance, RangeValue, Reversed, Slot, describe
from .run_cells import Cells
from .run_values import (
    INDEX,
    Abstract,
    HostTree,
    Indices,
    as_types,
    leaves,
    outcome,
    static,
    static_layers,
    strong,
    type_of,
)
from .session import folders
from .tokenizers import Tokenizer


class RunBlock:
    """One execution of a run block. With `absent` (a list) it is checked instead: nothing is computed or printed, and files that are not
    here are noted there."""

    def __init__(self, program, block: A.Run, overrides: Mapping[str, Any] | None = None, backend: str = "cpu", threads: int | None = None,
                 seed: int | None = None, weights: str | None = None, out=None, options=None, absent: list | None = None,
                 quantize: str | None = None):
        self.program, self.block, self._quantize = program, block, checked(quantize)
        self.backend, self.threads, self.options = backend, threads, options
        self.overrides = dict(overrides or {})
        settings = {s.target.id: s for s in block.stmts if _is_setting(s)}
        self.where = self.overrides.pop("data", None) if "data" not in settings or not literal(settings["data"].value) else None
        self._known = sorted(settings)
        given = settings.get("seed")
        self.seed = int(seed if seed is not None else self.overrides.get("seed", given.value.value if given is not None and
                                                                         isinstance(given.value, A.Int) else 0))
        if "seed" not in settings:
            self.overrides.pop("seed", None)
        self.weights, self._fitted = weights, False
        self.absent, self.checking = absent, absent is not None
        self.printer = H.Printer(out)
        if self.where is not None and not isinstance(self.where, str):
            raise DatasetError(f"data = {self.where!r}: expected a path")
        self.folders = folders(program.file, self.where)
        self.host = {"print": H.HostFunction("print", self._print), "load": H.HostFunction("load", self._load),
                     "reset": H.HostFunction("reset", self._reset), **H.file_objects(self)}
        self.host = {n: f for n, f in self.host.items() if n not in program.main.items}
        self.warnings: list[Diagnostic] = []
        self._effects = 0
        self._keys = 0
        self._fresh = 0
        self._yields: list | None = None
        self._at = block.name_span                             # the host call being carried out
        self._compiled: dict[tuple, Any] = {}
        self._rewritten: dict[int, tuple] = {}
        self._free: dict[int, tuple[A.Node, tuple[str, ...]]] = {}
        self.cells = Cells(self.seed, self.backend, self._build, self._key)

    # ---- statements --------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Carry out the block; the names it bound, for whoever looks on."""
        from .frontend.elaborator import deep_recursion
        unknown = [n for n in self.overrides if n not in self._known]
        if unknown:
            near = did_you_mean(unknown[0], self._known)
            raise error(None, f"--set {unknown[0]}: run block `{self.block.name}` has no setting `{unknown[0]}`",
                        hint=f"did you mean `{near}`?" if near else f"it has: {', '.join(self._known) or 'none'}")
        env: dict[str, Any] = {}
        try:
            with deep_recursion():
                for s in self.block.stmts:
                    if _is_setting(s) and s.target.id not in env:
                        self._setting(s, env)
                    else:
                        self._statement(s, env, False)
        finally:
            self.printer.close()
        if self.weights is not None and not self._fitted:
            raise error(self.block.name_span, f"--weights {self.weights}: run block `{self.block.name}` makes no model that could take them")
        return env

    def _setting(self, s: A.Assign, env: dict) -> None:
        name = s.target.id
        if name in self.overrides:
            if not literal(s.value):
                raise error(s.value.span, f"--set {name} can replace a literal only, and this is computed")
            env[name] = self.overrides[name]
            return
        value = self.value(s.value, env)
        if isinstance(value, LayerInstance) and value.label is None:
            value.label = name
        env[name] = value
        if isinstance(value, LayerInstance) and self.weights is not None and not self._fitted:
            self._fit(value, self.weights, None)

    def _block(self, stmts: list[A.Node], env: dict) -> Any:
        env, value = dict(env), UNIT
        for k, s in enumerate(stmts):
            value = self._statement(s, env, k == len(stmts) - 1)
        return value

    def _statement(self, s: A.Node, env: dict, last: bool) -> Any:
        if isinstance(s, A.Let):
            value = self.value(s.value, env)
            if s.type is not None:
                value = self._typed(s, value, env)
            self._bind(s.pattern, value, env)
        elif isinstance(s, A.Assert):
            self._assert(s, env)
        elif isinstance(s, A.Yield):
            if self._yields is None:
                raise error(s.span, "`yield` belongs in the body of a `scan`")
            self._yields.append(self.value(s.value, env))
        elif isinstance(s, A.ExprStmt):
            before = self._effects
            value = self.evaluate(s.value, env)
            loop = isinstance(s.value, A.While | A.Scan) and self._is_host(s.value, env)      # what its body does counts, entered or not
            if not last and value is not UNIT and self._effects == before and not loop:
                raise error(s.span, "this value is not used", hint="`print(..)` shows it, `let` binds it")
            return value
        elif isinstance(s, A.Assign):
            self._compute(s, env)
        else:
            raise error(s.span, f"`{type(s).__name__.lower()}` cannot stand in a run block",
                        hint="train blocks learn" if isinstance(s, A.Learn | A.Minimize) else None)
        return UNIT

    def _typed(self, s: A.Let, value: Any, env: dict) -> Any:
        """`let x: f32[3] = ..`: converted and checked as everywhere in the language."""
        key = -id(s)
        if key not in self._rewritten:
            name = s.pattern.name if isinstance(s.pattern, A.NamePattern) and s.pattern.name != "_" else "$typed"
            stmts = [A.Let(s.span, A.NamePattern(s.pattern.span, name), s.type, A.Name(s.value.span, "$value")),
                     A.ExprStmt(s.span, A.Name(s.span, name))]
            self._rewritten[key] = (A.Block(s.span, stmts),)
        return self._compute(self._rewritten[key][0], {**env, "$value": value})

    def _bind(self, p: A.Pattern, value: Any, env: dict) -> None:
        if isinstance(p, A.NamePattern):
            if p.name != "_":
                env[p.name] = value
            return
        parts = list(value) if isinstance(value, tuple | list) else self._rows(value, p.span)
        if len(parts) != len(p.items):
            raise error(p.span, f"cannot unpack {len(parts)} parts into {len(p.items)} names")
        for q, v in zip(p.items, parts):
            self._bind(q, v, env)

    def _assert(self, s: A.Assert, env: dict) -> None:
        if self._truth(s.cond, self.value(s.cond, env), whole=True) is False:
            raise error(s.cond.span, s.message or "this does not hold", label="false")

    def _truth(self, node: A.Expr, v: Any, whole: bool = False) -> bool | None:
        """A condition as a Python bool; None where a check cannot know."""
        t = type_of(v)
        if isinstance(v, bool):
            return v
        if t is None or not t.dtype.is_bool or t.shape and not whole:
            what = f"{t.dtype}[{', '.join(map(str, t.shape))}]" if t is not None else describe(v)
            raise error(node.span, f"a condition is one bool, got {what}", hint="compare it: `x != 0`" if t is None else "`any` and `all` reduce")
        return None if isinstance(v, Abstract) else bool(np.all(H.numpy(v)))

    # ---- expressions -------------------------------------------------------------------------------------------------

    def value(self, node: A.Expr, env: dict) -> Any:
        """The value of an expression that has to have one."""
        v = self.evaluate(node, env)
        if v is UNIT:
            raise error(node.span, "this gives no value")
        return v

    def evaluate(self, node: A.Expr, env: dict) -> Any:
        if isinstance(node, A.Name) and (node.id in env or node.id in self.host):
            return env[node.id] if node.id in env else self.host[node.id]
        if isinstance(node, A.Str | A.Int | A.Float | A.Bool):
            return node.value
        if isinstance(node, A.Lambda):
            self._no_host(node, env)
            return Closure(node, {n: env[n] for n in self._names(node) if n in env})
        if not self._is_host(node, env):
            return self._compute(node, env)
        if isinstance(node, A.Pipe):
            return self.evaluate(self._unpiped(node), env)
        if isinstance(node, A.Block):
            return self._block(node.stmts, env)
        if isinstance(node, A.If):
            return self._if(node, env)
        if isinstance(node, A.While):
            return self._while(node, env)
        if isinstance(node, A.Scan):
            return self._scan(node, env)
        if isinstance(node, A.Tuple):
            return tuple(self.value(x, env) for x in node.items)
        if isinstance(node, A.List):
            return [self.value(x, env) for x in node.items]
        if isinstance(node, A.Call) and self._is_host(node.func, env):
            return self._call(node, env)
        if isinstance(node, A.Attr):
            base = self.value(node.value, env)
            if isinstance(base, Tokenizer | Dataset):
                return H.attribute(base, node.name, node.name_span)
        return self._compute(node, env)

    def _call(self, node: A.Call, env: dict) -> Any:
        f = self.value(node.func, env)
        if not isinstance(f, H.HostFunction):
            raise error(node.func.span, f"{H.text(f)} cannot be called")
        args = [self.value(a.value, env) for a in node.args if a.name is None]
        kw = {a.name: self.value(a.value, env) for a in node.args if a.name is not None}
        if self.checking and f.pure and any(isinstance(v, Abstract) for v in [*args, *kw.values()]):
            return f.when_abstract(node.span)
        self._effects += not f.pure
        self._at = node.span
        return f.call(args, kw, node.span)

    def _unpiped(self, node: A.Pipe) -> A.Expr:
        key = id(node)
        if key not in self._rewritten:
            right, first = node.right, A.Arg(node.left.span, None, node.left)
            call = A.Call(right.span, right.func, [first, *right.args]) if isinstance(right, A.Call) and not right.parens else \
                A.Call(right.span, right, [first])
            self._rewritten[key] = (call, node)
        return self._rewritten[key][0]

    # -- control flow

    def _if(self, node: A.If, env: dict) -> Any:
        c = self._truth(node.cond, self.value(node.cond, env))
        if c is None:
            values = [self.evaluate(b, env) for b in (node.then, node.orelse) if b is not None]
            return values[0] if node.orelse is not None else UNIT
        branch = node.then if c else node.orelse
        return self.evaluate_block(branch, env) if branch is not None else UNIT

    def evaluate_block(self, node: A.Expr, env: dict) -> Any:
        """A branch or body: a block's statements, or an `else if`."""
        return self._block(node.stmts, env) if isinstance(node, A.Block) else self.evaluate(node, env)

    def _carries(self, node: A.While | A.Scan, env: dict) -> list[Any]:
        return [strong(self.value(c.init, env)) for c in node.carries]

    def _body(self, node: A.While | A.Scan, env: dict, values: list[Any]) -> list[Any]:
        value = self._block(node.body.stmts, env)
        if not node.carries:
            return values
        if value is UNIT:
            raise error(node.body.span, "a value is expected here: the loop's next one")
        new = [value] if len(values) == 1 else list(value) if isinstance(value, tuple | list) else []
        if len(new) != len(values):
            raise error(node.body.span, f"the body gives {H.text(value)}, but the loop carries {len(values)} values")
        return [strong(v) for v in new]

    def _while(self, node: A.While, env: dict) -> Any:
        values = self._carries(node, env)
        while True:
            inner = dict(env)
            for c, v in zip(node.carries, values):
                self._bind(c.pattern, v, inner)
            c = self._truth(node.cond, self.value(node.cond, inner))
            if c is False:
                break
            values = self._body(node, inner, values)
            if self.checking:                                  # one round shows it all
                break
        return outcome(values)

    def _scan(self, node: A.Scan, env: dict) -> Any:
        if isinstance(node.iterable, A.Range):
            bounds = [self.value(x, env) for x in (node.iterable.start, node.iterable.stop)]
            items: Any = [Abstract(INDEX)] if any(isinstance(b, Abstract) for b in bounds) else \
                Indices(range(*(int(H.numpy(b)) for b in bounds)))
        else:
            items = self._items(self.value(node.iterable, env), node.iterable.span)
        values, ys = self._carries(node, env), []
        rounds = len(items)
        if self.checking and not isinstance(items, list):      # one round shows it all
            items = [Abstract(INDEX)] if rounds else []
        for x in items:
            inner = dict(env)
            self._bind(node.pattern, x, inner)
            for c, v in zip(node.carries, values):
                self._bind(c.pattern, v, inner)
            outer, self._yields = self._yields, []
            try:
                values = self._body(node, inner, values)
                ys += self._yields
            finally:
                self._yields = outer
        if not ys:
            return outcome(values) if node.carries else UNIT
        stacked = self._stack([strong(y) for y in ys], rounds, node.span)
        finals = [v for c, v in zip(node.carries, values) if c.final]
        return (stacked, outcome(finals)) if finals else stacked

    def _stack(self, ys: list, rounds: int, span) -> Any:
        """What the rounds of a loop yielded, as one array; tuples part by part."""
        if isinstance(ys[0], tuple | list):
            return type(ys[0])(self._stack([strong(v) for v in column], rounds, span) for column in zip(*ys))
        types = {type_of(y) for y in ys}
        if None in types or len(types) > 1:
            raise error(span, "only arrays of one type can be yielded")
        if self.checking:
            t = types.pop()
            return Abstract(t.with_shape((rounds, *t.shape)))
        return np.stack([H.numpy(y) for y in ys])

    def _items(self, v: Any, span) -> Any:
        if isinstance(v, Reversed):
            return self._items(v.of, span)[::-1]
        if isinstance(v, RangeValue):
            return Indices(range(v.start, v.stop))
        if isinstance(v, list):
            return v
        if isinstance(v, tuple):
            return list(zip(*(self._rows(x, span) for x in v))) if all(type_of(x) is not None for x in v) else list(v)
        return self._rows(v, span)

    def _rows(self, v: Any, span) -> list:
        t = type_of(v)
        if t is None or not t.shape:
            raise error(span, f"{H.text(v)} has no parts")
        if isinstance(v, Abstract):
            return [Abstract(t.with_shape(t.shape[1:]))] * t.shape[0]
        return list(map(np.asarray, H.numpy(v)))

    # -- what is the host's

    def _names(self, node: A.Node) -> tuple[str, ...]:
        """The names in an expression, those of its own among them."""
        found = self._free.get(id(node))
        if found is None:
            names = {n.id if isinstance(n, A.Name) else n.name.split(".")[0] for n in A.walk(node) if isinstance(n, A.Name | A.TensorType)}
            found = self._free[id(node)] = (node, tuple(sorted(names)))
        return found[1]

    def _is_host(self, node: A.Node, env: dict) -> bool:
        return any(isinstance(env[n], Tokenizer | Dataset | H.HostFunction) if n in env else n in self.host for n in self._names(node))

    def _no_host(self, node: A.Node, env: dict) -> None:
        if self._is_host(node, env):
            name = next(n for n in self._names(node) if self._is_host(A.Name(node.span, n), env))
            raise error(node.span, f"`{name}` cannot be used in a function here", hint="functions are compiled; files and printing are not")

    def _rewrite(self, node: A.Node, env: dict) -> tuple[A.Node, list[tuple[str, A.Expr]]]:
        """The node with its host parts replaced by names, and those parts in order."""
        done = self._rewritten.get(id(node))
        if done is None:
            parts: list[tuple[str, A.Expr]] = []
            done = self._rewritten[id(node)] = (self._replace(node, env, parts, True), parts, node)
        return done[0], done[1]

    def _replace(self, node: Any, env: dict, parts: list, top: bool = False) -> Any:
        if isinstance(node, list):
            return [self._replace(x, env, parts) for x in node]
        if not isinstance(node, A.Node) or not self._is_host(node, env):
            return node
        if isinstance(node, A.Lambda | A.Comprehension):
            self._no_host(node, env)
        direct = isinstance(node, A.Name | A.Attr | A.If | A.While | A.Scan | A.Block | A.Pipe) or \
            isinstance(node, A.Call) and self._is_host(node.func, env)
        if direct and not top:
            self._fresh += 1
            parts.append((f"$host{self._fresh}", node))
            return A.Name(node.span, parts[-1][0])
        new = copy.copy(node)
        for field in A.field_names(node):
            setattr(new, field, self._replace(getattr(node, field), env, parts))
        return new

    # ---- compiled expressions ----------------------------------------------------------------------------------------

    def _compute(self, node: A.Node, env: dict) -> Any:
        """Compiles an expression or writing statement for what it uses, and runs it."""
        if self._is_host(node, env):
            node, parts = self._rewrite(node, env)
            if parts:
                env = {**env, **{n: self.value(part, env) for n, part in parts}}
        given = {n: env[n] for n in self._names(node) if n in env}
        key = (id(node), tuple((n, static(v)) for n, v in given.items()))
        try:
            found = self._compiled.get(key)
        except TypeError:                                      # a static value that has no hash
            found, key = None, None
        if found is not None and any(self.cells.type(s) != t for s, t in found[3].items()):
            found = None
        if found is None:
            types = {n: as_types(v) for n, v in given.items()}
            looked: dict[Slot, TensorType | None] = {}
            e = elaborate_expression(self.program, node, types, lambda slot: looked.setdefault(slot, self.cells.type(slot)))
            found = (e, None, (node, given), looked)
            self.warnings += found[0].warnings
            for _, layer in walk_layers(static_layers(found[0].spec), ""):
                self.cells.register(layer)
            if not e.results and len(e.module.funcs[e.entry].body.ops) == 1:          # known when compiling
                return unflatten(e.spec, ())
            if not self.checking:
                mark_call(e, self._quantize)
                found = (e, self._build(e.module, inference=True), *found[2:])
            if key is not None:
                self._compiled[key] = found
        return self._run(found[0], found[1], given)

    def _build(self, module, inference: bool = False):
        from .compiler import driver
        return driver.build(module, self.backend, threads=self.threads, options=self.options, inference=inference)

    def _run(self, e, program, given: dict) -> Any:
        self._effects += any(r.kind != "result" for r in e.results)
        if self.checking:
            self.cells.update((r.slot, Abstract(r.type)) for r in e.results if r.kind == "cache")
            return unflatten(e.spec, (Abstract(r.type) for r in e.results), HostTree)
        rest, args = iter([x for v in given.values() for x in leaves(v)]), []
        self.cells.make_caches(e)
        for info in e.args:
            if info.slot is not None:
                args.append(self.cells.handle(info.slot, program))
            elif info.kind == "key":
                args.append(self._key())
            else:
                args.append(next(rest))
        results = program.call(e.entry, args)
        n = sum(r.kind == "result" for r in e.results)
        self.cells.update(zip((info.slot for info in e.results[n:]), results[n:]))
        return unflatten(e.spec, results[:n], HostTree)

    def _key(self) -> np.ndarray:
        """A key of its own for every evaluation."""
        from .train import key_of
        self._keys += 1
        return key_of(self.seed, 5, self._keys)

    # ---- host functions ----------------------------------------------------------------------------------------------

    def _print(self, *values, sep: str = " ", end: str | None = None):
        if not self.checking:
            self.printer.print(values, sep, end)
        return UNIT

    def _load(self, model, path):
        if not isinstance(model, LayerInstance):
            raise ValueError(f"expected a model, got {H.text(model)}")
        if self.weights is not None and model in self.cells.models[:1]:
            if not self._fitted:
                self._fit(model, self.weights, None)
            return UNIT                                        # --weights stands for what the program names
        self._fit(model, path, self.folders)
        return UNIT

    def _fit(self, model: LayerInstance, path: str, base: list[Path] | None) -> None:
        """Weights from a file, for all parameters and states of a model."""
        from .checkpoint import CheckpointError
        from .tokenizers import find_file
        from .weights import fit, read_weights
        if base is not None:
            try:
                path = find_file(path, base, "load")
            except DatasetError as e:
                if not self.checking:
                    raise error(None, e.message, hint=f"{e.hint}; --weights FILE gives another file") from None
                e.diagnostics[0].span = self._at
                self.absent.append(e)
                return
        try:
            values = fit(model, read_weights(path), str(path))
        except CheckpointError as e:
            raise error(None, str(e)) from None
        self._fitted |= base is None
        self.cells.write({slot: values[p] for p, slot in model.cells if p in values})

    def _reset(self, model):
        if not isinstance(model, LayerInstance):
            raise ValueError(f"expected a model, got {H.text(model)}")
        self.cells.forget(slot for _, slot in model.cells if slot.kind == "cache")
        return UNIT


def _is_setting(s: A.Node) -> bool:
    return isinstance(s, A.Assign) and s.op == "=" and isinstance(s.target, A.Name)


def check(program, name: str, overrides: Mapping[str, Any] | None = None, absent: list | None = None) -> list[Diagnostic]:
    """The diagnostics of a run block, found without computing anything. Files that are not here go to `absent`."""
    absent = [] if absent is None else absent
    block = program.blocks[name]
    settings = {s.target.id for s in block.stmts if _is_setting(s)}
    run = RunBlock(program, block, {k: v for k, v in (overrides or {}).items() if k in settings or k == "data"}, absent=absent)
    try:
        run.run()
    except CompileError as e:
        if isinstance(e, DatasetError) and e.absent:
            absent.append(e)
        return [*run.warnings, *e.diagnostics]
    return run.warnings
