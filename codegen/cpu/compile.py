"""From LLVM text to a callable address: the bounded pass pipeline, the cache of objects, the compile threads, loading.

Holds no knowledge about tensors or loops. Texts are compiled by a pool of threads (`submit`), one module and one LLVM
context each. llvmlite guards every call with one lock for the whole process, so its threads only take turns; LLVM itself
needs no such lock for modules in contexts of their own, and the three calls that take the time are made around it.
"""
from __future__ import annotations

import ctypes
import functools
import hashlib
import itertools
import os
import threading
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor

from ...compiler.cache_dir import read_cached, write_cached
from .target import CpuTarget, host_target

# Bumped when the pass pipeline below changes: part of every object's cache key.
PIPELINE = "4"

# ---------------------------------------------------------------- compilation

_local = threading.local()
_making = threading.Lock()               # registering LLVM's targets is not for two threads at once


def _target_machine(target: CpuTarget, quick: bool = False):
    """One per thread: LLVM's are not to be shared."""
    known = _local.__dict__.setdefault("machines", {})
    if (target, quick) not in known:
        known[target, quick] = _new_target_machine(target, quick)
    return known[target, quick]


def _new_target_machine(target: CpuTarget, quick: bool):
    import llvmlite.binding as llvm
    with _making:
        if target.triple == llvm.get_default_triple():
            llvm.initialize_native_target()
            llvm.initialize_native_asmprinter()
        else:                                                  # 30 ms, for tests of other machines' code
            llvm.initialize_all_targets()
            llvm.initialize_all_asmprinters()
    # Position-independent code: JIT memory can be further than 2 GB from libm.
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=0 if quick else 2, reloc="pic", codemodel="small", jit=True)


@functools.cache
def _unlocked(name: str):
    """A function of llvmlite's library without llvmlite's lock around it."""
    from llvmlite.binding import ffi
    locked, free = getattr(ffi.lib, name), getattr(ctypes.CDLL(ffi.lib._name), name)
    free.argtypes, free.restype = locked.argtypes, locked.restype
    return free


def optimise_and_emit(text: str, target: CpuTarget, quick: bool = False, *, assembly: bool = False):
    """LLVM text -> object bytes (or assembly text). `quick`: long code that runs once in a while, so that making it well takes
    longer than it will ever run: straight to machine code, 15 times as fast.

    Vector code comes in ready made and loops in the shape they are to have, so little is left to do for LLVM's optimiser: inlining
    what says so, slots to registers, constants and addresses, empty blocks. Its level 1 takes seven times as long (40 % of all
    compile time) and gains nothing measurable; common subexpressions and invariants of loops are the code generator's work."""
    import llvmlite.binding as llvm
    from llvmlite.binding import ffi
    tm, context = _target_machine(target, quick), llvm.create_context()
    with ffi.OutputString() as problem:
        made = _unlocked("LLVMPY_ParseAssembly")(context, text.encode(), problem)
        if not made:
            raise RuntimeError(f"LLVM cannot parse what was generated: {problem}")
    with llvm.ModuleRef(made, context) as module:
        module.triple = target.triple
        if not quick:
            passes = llvm.create_new_module_pass_manager()
            passes.add_always_inliner_pass()
            passes.add_global_dead_code_eliminate_pass()
            passes.add_sroa_pass()
            passes.add_instruction_combine_pass()
            passes.add_simplify_cfg_pass()
            builder = llvm.create_pass_builder(tm, llvm.create_pipeline_tuning_options(speed_level=1))
            _unlocked("LLVMPY_RunNewModulePassManager")(passes, module, builder)
        if assembly:
            return tm.emit_assembly(module)
        with ffi.OutputString() as problem:
            buffer = _unlocked("LLVMPY_TargetMachineEmitToMemory")(tm, module, 1, problem)
            if not buffer:
                raise RuntimeError(f"LLVM cannot emit what was generated: {problem}")
        try:
            return ctypes.string_at(ffi.lib.LLVMPY_GetBufferStart(buffer), ffi.lib.LLVMPY_GetBufferSize(buffer))
        finally:
            ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


@functools.cache
def _target_key(target: CpuTarget) -> bytes:
    import llvmlite
    return "|".join((llvmlite.__version__, PIPELINE, target.triple, target.cpu, target.features)).encode()


def object_key(text: str, target: CpuTarget, quick: bool = False) -> str:
    """The name under which the object made from `text` is cached."""
    return hashlib.sha256(_target_key(target) + b"\0\1"[quick:][:1] + text.encode()).hexdigest()


def compile_text(text: str, target: CpuTarget | None = None, quick: bool = False) -> bytes:
    """Object bytes for `text`, from the disk cache where possible."""
    target = target or host_target()
    name = object_key(text, target, quick)
    blob = read_cached("obj", name)
    if blob is None:
        blob = optimise_and_emit(text, target, quick)
        write_cached("obj", name, blob)
    return blob


# ---------------------------------------------------------------- compile threads

_pools: dict[bool, ThreadPoolExecutor] = {}                  # what is quick does not wait for what is not
_pool_lock = threading.Lock()
_recent: OrderedDict[str, Future[bytes]] = OrderedDict()     # what is being compiled, and the last that was
_waiting: deque[tuple[Future[bytes], str, CpuTarget]] = deque()
RECENT = 64


def submit(text: str, target: CpuTarget, quick: bool = False, first: bool = False) -> Future[bytes]:
    """`compile_text` beside whatever comes next; `finish` has the result. Equal texts are compiled once. `first`: before what waits already,
    as what may take long; many small texts at the end keep all threads busy until then.

    One thread less than there are processors: the caller, who writes the next text meanwhile, needs one, and compiles with
    the others once it waits for them."""
    key = object_key(text, target, quick)
    with _pool_lock:
        if key in _recent:
            _recent.move_to_end(key)
            return _recent[key]
        if quick not in _pools:
            _pools[quick] = ThreadPoolExecutor(max(1, _processors() - 1), "engram-compile")
        if quick:
            future = _pools[quick].submit(compile_text, text, target, quick)
        else:
            (_waiting.appendleft if first else _waiting.append)((future := Future(), text, target))
            _pools[quick].submit(_compile_next)
        _recent[key] = future
        if len(_recent) > RECENT:
            _recent.popitem(last=False)
        return future


def _compile_next() -> bool:
    """Compiles what has waited longest; False where nothing waits."""
    try:
        future, text, target = _waiting.popleft()
    except IndexError:
        return False
    try:
        future.set_result(compile_text(text, target))
    except BaseException as problem:
        future.set_exception(problem)
        if not isinstance(problem, Exception):
            raise
    return True


def abandon() -> None:
    """Nobody will ask for what still waits: a process that ends would wait for it."""
    with _pool_lock:
        _waiting.clear()
        _recent.clear()


def finish(futures: list[Future[bytes]]) -> list[bytes]:
    """The objects of texts that were submitted."""
    while not all(f.done() for f in futures) and _compile_next():
        pass
    return [f.result() for f in futures]


def _processors() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def _after_fork() -> None:
    """A child process has none of its parent's threads."""
    global _pool_lock, _making
    _pool_lock, _making = threading.Lock(), threading.Lock()
    _pools.clear()
    _recent.clear()
    _waiting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def compile_many(texts: list[str], target: CpuTarget | None = None) -> list[bytes]:
    """Object bytes of several modules, compiled side by side."""
    target = target or host_target()
    return finish([submit(text, target) for text in texts])


# ---------------------------------------------------------------- loading

@functools.cache
def _jit(target: CpuTarget):
    """JITLink lays a module's sections side by side. RuntimeDyld, the default, asks for each alone: where the address space is
    crowded (a GPU's driver, gigabytes of arrays) they lie over 2 GB apart, and it ends the process."""
    import llvmlite.binding as llvm
    return llvm.create_lljit_compiler(_target_machine(target), use_jit_link=True, suppress_errors=False)


_library_number = itertools.count()


class Library:
    """Loaded machine code: `address(symbol)`; unloaded when the last reference goes."""

    def __init__(self, blobs: list[bytes], exports: list[str], imports: dict[str, int] | None = None,
                 target: CpuTarget | None = None):
        import llvmlite.binding as llvm
        self._jit = _jit(target or host_target())
        builder = llvm.JITLibraryBuilder()
        for blob in blobs:
            builder.add_object_img(blob)
        builder.add_current_process()
        for name, address in (imports or {}).items():
            builder.import_symbol(name, address)
        for name in exports:
            builder.export_symbol(name)
        self._tracker = builder.link(self._jit, f"engram{next(_library_number)}")

    def address(self, symbol: str) -> int:
        return self._tracker[symbol]


def load(text: str, exports: list[str], imports: dict[str, int] | None = None,
         target: CpuTarget | None = None) -> Library:
    """Compile (or fetch) `text` and load it."""
    target = target or host_target()
    return Library(compile_many([text], target), exports, imports, target)
