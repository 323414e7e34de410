"""A thin writer of LLVM IR text: fresh names, blocks, counted loops. Far faster than llvmlite.ir and nothing more:
types are strings, no checking is done here (LLVM's parser does it)."""
from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from .target import CpuTarget


def f32_const(x: float) -> str:
    """An f32 constant as LLVM writes it: the hexadecimal bits of the same value as a double."""
    return f64_const(struct.unpack("f", struct.pack("f", x))[0])


def f64_const(x: float) -> str:
    return f"0x{struct.unpack('<Q', struct.pack('<d', x))[0]:016X}"


def splat(elem: str, lanes: int, value: str) -> str:
    """A constant vector with all lanes alike (lanes == 1: the scalar)."""
    return value if lanes == 1 else f"splat ({elem} {value})"


def vec(elem: str, lanes: int) -> str:
    return elem if lanes == 1 else f"<{lanes} x {elem}>"


class Module:
    """The text of one LLVM module: declarations once, functions in order."""

    def __init__(self, target: CpuTarget):
        self.target = target
        self.declared: dict[str, str] = {}
        self.functions: list[str] = []
        self.have: set[str] = set()        # names of functions emitted on demand

    def declare(self, line: str) -> None:
        """A line above all functions; a function's declaration is left out again where the module defines it."""
        self.declared.setdefault(line, line)

    @property
    def size(self) -> int:
        """Characters of its functions."""
        return sum(map(len, self.functions))

    def intrinsic(self, result: str, name: str, *args: str) -> str:
        """Declare `name` and return `@name` as it is written in a call."""
        self.declare(f"declare {result} @{name}({', '.join(args)})")
        return f"@{name}"

    def take(self, other: Module) -> None:
        """Adds what another module holds."""
        self.declared |= other.declared
        self.functions += other.functions
        self.have |= other.have

    def text(self) -> str:
        defined = {_name(f) for f in self.functions}
        declared = [d for d in self.declared if not d.startswith("declare ") or _name(d) not in defined]
        return "\n".join([*declared, *self.functions, self.target.fn_attrs])

    def parts(self, limit: int, start: int = 0, stop: int | None = None) -> list[str]:
        """The text (of functions number start to stop) as several modules of about `limit` characters each. Their functions call one another,
        so none stays internal."""
        known = {_name(f): _declaration(f) for f in self.functions if f.startswith("define ")}
        groups, at = [[]], 0
        for f in self.functions[start:stop]:
            if at and at + len(f) > limit:
                groups.append([])
                at = 0
            groups[-1].append(f.replace("define internal ", "define ", 1))
            at += len(f)
        texts = []
        for group in groups:
            part = Module(self.target)
            part.functions = group
            used = set(_NAME.findall("\n".join(group)))
            part.declared = {d: d for d in [*self.declared, *known.values()] if _name(d) in used}
            texts.append(part.text())
        return texts


class Fn:
    """One function being written. `op("fadd float %a, %b")` appends an instruction and returns its fresh name."""

    def __init__(self, module: Module, header: str, attrs: str = "#0"):
        self.module = module
        self.header, self.attrs = header, attrs
        self.entry: list[str] = []          # allocas, at the top of the entry block
        self.lines: list[str] = []
        self.n = 0
        self.block = "entry"

    def name(self, hint: str = "v") -> str:
        self.n += 1
        return f"%{hint}{self.n}"

    def op(self, text: str, hint: str = "v") -> str:
        self.n += 1
        name = f"%{hint}{self.n}"
        self.lines.append(f"  {name} = {text}")
        return name

    def do(self, text: str) -> None:
        self.lines.append("  " + text)

    def alloca(self, type_: str, align: int = 64) -> str:
        self.n += 1
        name = f"%slot{self.n}"
        self.entry.append(f"  {name} = alloca {type_}, align {align}")
        return name

    def new_label(self, hint: str = "b") -> str:
        self.n += 1
        return f"{hint}{self.n}"

    def label(self, name: str) -> None:
        """Start a block (the previous one must have been ended by a branch)."""
        self.lines.append(f"{name}:")
        self.block = name

    def jump(self, name: str) -> None:
        self.lines.append(f"  br label %{name}")

    def branch(self, cond: str, yes: str, no: str) -> None:
        self.lines.append(f"  br i1 {cond}, label %{yes}, label %{no}")

    def gep(self, elem: str, base: str, index: str) -> str:
        if index == "0":
            return base
        return self.op(f"getelementptr {elem}, ptr {base}, i64 {index}", "p")

    def load(self, type_: str, ptr: str, align: int) -> str:
        return self.op(f"load {type_}, ptr {ptr}, align {align}", "l")

    def store(self, type_: str, value: str, ptr: str, align: int) -> None:
        self.lines.append(f"  store {type_} {value}, ptr {ptr}, align {align}")

    def stream(self, type_: str, value: str, ptr: str, align: int) -> None:
        """A store past the caches; `fence` has to follow before others may read."""
        self.module.declare("!0 = !{i32 1}")
        self.lines.append(f"  store {type_} {value}, ptr {ptr}, align {align}, !nontemporal !0")

    def prefetch(self, ptr: str, level: int = 3, write: bool = False) -> None:
        """The line at `ptr` into L1 (3) or L2 (2), to be read or written."""
        name = self.module.intrinsic("void", "llvm.prefetch.p0", "ptr", "i32", "i32", "i32")
        self.do(f"call void {name}(ptr {ptr}, i32 {int(write)}, i32 {level}, i32 1)")

    def fence(self) -> None:
        """Streamed stores are in memory before whatever is stored later. On x86 alone they are not in order with other stores."""
        if self.module.target.x86:
            self.do(f"call void {self.module.intrinsic('void', 'llvm.x86.sse.sfence')}()")

    # 64-bit integer arithmetic with the obvious constants folded
    def iadd(self, a: str, b: str) -> str:
        if a == "0": return b
        if b == "0": return a
        if _int(a) and _int(b): return str(int(a) + int(b))
        return self.op(f"add i64 {a}, {b}", "i")

    def isub(self, a: str, b: str) -> str:
        if b == "0": return a
        if _int(a) and _int(b): return str(int(a) - int(b))
        return self.op(f"sub i64 {a}, {b}", "i")

    def imul(self, a: str, b: str) -> str:
        if a == "0" or b == "0": return "0"
        if a == "1": return b
        if b == "1": return a
        if _int(a) and _int(b): return str(int(a) * int(b))
        return self.op(f"mul i64 {a}, {b}", "i")

    def udiv(self, a: str, b: str) -> str:
        if b == "1": return a
        if _int(a) and _int(b): return str(int(a) // int(b))
        return self.op(f"udiv i64 {a}, {b}", "i")

    def urem(self, a: str, b: str) -> str:
        if b == "1": return "0"
        if _int(a) and _int(b): return str(int(a) % int(b))
        return self.op(f"urem i64 {a}, {b}", "i")

    def icmp(self, pred: str, a: str, b: str) -> str:
        return self.op(f"icmp {pred} i64 {a}, {b}", "c")

    def both(self, a: str, b: str) -> str:
        return self.op(f"and i1 {a}, {b}", "c")

    def either(self, a: str, b: str) -> str:
        return self.op(f"or i1 {a}, {b}", "c")

    def imin(self, a: str, b: str) -> str:
        if a == b: return a
        if _int(a) and _int(b): return str(min(int(a), int(b)))
        less = self.op(f"icmp slt i64 {a}, {b}")
        return self.op(f"select i1 {less}, i64 {a}, i64 {b}", "i")

    @contextmanager
    def loop(self, start: str, stop: str, step: str = "1", carried: list[tuple[str, str]] | None = None,
             nonempty: bool = False) -> Iterator[Loop]:
        """for i in start..stop by step (signed compare). `carried` = [(type, initial value)]; inside, `loop.values`
        are the phis and `loop.next` is to be set; afterwards `loop.results` hold the final values."""
        loop = Loop(self, start, stop, step, carried or [], nonempty)
        loop.begin()
        yield loop
        loop.end()

    @contextmanager
    def when(self, cond: str) -> Iterator[None]:
        """if cond { ... } (nothing flows out but memory)."""
        yes, done = self.new_label("then"), self.new_label("done")
        self.branch(cond, yes, done)
        self.label(yes)
        yield
        self.jump(done)
        self.label(done)

    def finish(self, ret: str = "ret void") -> None:
        self.do(ret)
        body = "\n".join(["entry:", *self.entry, *self.lines])
        self.module.functions.append(f"define {self.header} {self.attrs} {{\n{body}\n}}")


class Loop:
    """A counted loop in rotated form: one guard in front, the test at the bottom."""

    def __init__(self, fn: Fn, start: str, stop: str, step: str, carried: list[tuple[str, str]], nonempty: bool):
        self.fn, self.start, self.stop, self.step, self.carried = fn, start, stop, step, carried
        self.nonempty = nonempty or (_int(start) and _int(stop) and int(start) < int(stop))

    def begin(self) -> None:
        fn = self.fn
        self.head, self.tail, self.exit = fn.new_label("loop"), fn.new_label("next"), fn.new_label("end")
        self.before = fn.block
        if self.nonempty:
            fn.jump(self.head)
        else:
            fn.branch(fn.op(f"icmp slt i64 {self.start}, {self.stop}"), self.head, self.exit)
            self.before = fn.block
        fn.label(self.head)
        self.index = fn.name("i")
        self.values = [fn.name("acc") for _ in self.carried]
        self.next = list(self.values)
        self._at = len(fn.lines)             # the phis go here once the values they join are known

    def end(self) -> None:
        fn = self.fn
        fn.jump(self.tail)
        fn.label(self.tail)
        after = fn.op(f"add nsw i64 {self.index}, {self.step}", "i")
        again = fn.op(f"icmp slt i64 {after}, {self.stop}")
        fn.branch(again, self.head, self.exit)
        phis = [f"  {self.index} = phi i64 [ {self.start}, %{self.before} ], [ {after}, %{self.tail} ]"]
        phis += [f"  {v} = phi {t} [ {init}, %{self.before} ], [ {nxt}, %{self.tail} ]"
                 for v, nxt, (t, init) in zip(self.values, self.next, self.carried)]
        fn.lines[self._at:self._at] = phis
        fn.label(self.exit)
        if self.nonempty:
            self.results = list(self.next)
        else:
            self.results = [fn.op(f"phi {t} [ {init}, %{self.before} ], [ {nxt}, %{self.tail} ]", "acc")
                            for nxt, (t, init) in zip(self.next, self.carried)]


def _declaration(function: str) -> str:
    header = function[:function.index(" #")].removeprefix("define ").removeprefix("internal ")
    return "declare " + header.replace("noalias ", "")


def _name(line: str) -> str:
    """What a declaration or definition is about: its first `@name`."""
    return _NAME.search(line).group()


_NAME = re.compile(r'@(?:"[^"]*"|[\w.$-]+)')


def _int(text: str) -> bool:
    return text.lstrip("-").isdigit()
