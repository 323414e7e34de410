"""The machine that CPU code is made for, and the way from LLVM text to a callable address.

Holds: the target description every emitter derives its tiles and vector widths from (`CpuTarget`), the compilation of
LLVM text to an object (bounded pass pipeline), the on-disk cache of objects, and loading through LLJIT.
Holds no knowledge about tensors or loops.

`ENGRAM_CPU` (avx512 | avx2 | generic | neon) lowers the description, so that tests cover other machines' code paths.
"""
from __future__ import annotations

import functools
import hashlib
import itertools
import os
import platform
import threading
from dataclasses import dataclass
from pathlib import Path

from ...compiler.cache_dir import read_cached, write_cached

# Bumped when the pass pipeline below changes: part of every object's cache key.
PIPELINE = "1"

_BITS = {"f64": 64, "f32": 32, "bf16": 16, "f16": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8,
         "u64": 64, "u32": 32, "u16": 16, "u8": 8, "bool": 8}


@dataclass(frozen=True)
class CpuTarget:
    """What code generation needs to know about a processor."""

    name: str               # avx512 | avx2 | generic | neon
    triple: str
    cpu: str                # LLVM's name
    features: str           # LLVM's feature string
    vector_bytes: int       # width of one register
    registers: int          # number of vector registers
    fma: bool               # one-instruction fused multiply-add
    masked: bool            # masked loads and stores are as cheap as plain ones
    l1: int = 32 << 10
    l2: int = 512 << 10

    def lanes(self, dtype: str) -> int:
        """Elements of `dtype` in one vector register."""
        return self.vector_bytes * 8 // _BITS[dtype]

    @property
    def x86(self) -> bool:
        return self.triple.startswith("x86_64")

    @property
    def fn_attrs(self) -> str:
        """Attribute group `#0` that every emitted function carries (LLVM would split 512-bit vectors without it)."""
        extra = ""
        if self.x86:
            bits = self.vector_bytes * 8
            extra = f' "prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}"'
        return f'attributes #0 = {{ nounwind{extra} }}\nattributes #1 = {{ alwaysinline nounwind{extra} }}\n' \
               f'attributes #2 = {{ noinline nounwind{extra} }}\n'


def _cache_size(index: int, default: int) -> int:
    try:
        text = Path(f"/sys/devices/system/cpu/cpu0/cache/index{index}/size").read_text().strip()
        return int(text[:-1]) << {"K": 10, "M": 20}[text[-1]]
    except (OSError, ValueError, KeyError, IndexError):
        return default


@functools.cache
def _describe(wanted: str) -> CpuTarget:
    import llvmlite.binding as llvm
    triple = llvm.get_default_triple()
    machine = platform.machine().lower()
    caches = dict(l1=_cache_size(0, 32 << 10), l2=_cache_size(2, 512 << 10))
    if machine in ("arm64", "aarch64"):
        return CpuTarget("neon", triple, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten(),
                         16, 32, True, False, **caches)
    if machine not in ("x86_64", "amd64"):
        return CpuTarget("generic", triple, "generic", "", 16, 16, False, False, **caches)
    host = llvm.get_host_cpu_features()
    has512 = all(host.get(f) for f in ("avx512f", "avx512vl", "avx512bw", "avx512dq"))
    has256 = all(host.get(f) for f in ("avx2", "fma", "f16c"))
    if wanted in ("", "avx512") and has512:
        return CpuTarget("avx512", triple, llvm.get_host_cpu_name(), host.flatten() + ",-prefer-256-bit",
                         64, 32, True, True, **caches)
    if wanted in ("", "avx512", "avx2") and has256:
        cpu, features = (llvm.get_host_cpu_name(), host.flatten()) if not wanted else ("x86-64-v3", "")
        return CpuTarget("avx2", triple, cpu, features, 32, 16, True, False, **caches)
    return CpuTarget("generic", triple, "x86-64", "", 16, 16, False, False, **caches)


def host_target() -> CpuTarget:
    """The description of this machine, lowered by `ENGRAM_CPU` if that is set."""
    return _describe(os.environ.get("ENGRAM_CPU", "").strip().lower())


# ---------------------------------------------------------------- compilation

_local = threading.local()


def _target_machine(target: CpuTarget):
    """One per thread: LLVM's are not to be shared."""
    known = _local.__dict__.setdefault("machines", {})
    if target not in known:
        known[target] = _new_target_machine(target)
    return known[target]


def _new_target_machine(target: CpuTarget):
    import llvmlite.binding as llvm
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    # Position-independent code: JIT memory can be further than 2 GB from libm.
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=2, reloc="pic", codemodel="small", jit=True)


def optimise_and_emit(text: str, target: CpuTarget, *, assembly: bool = False, optimise: bool = True):
    """LLVM text -> object bytes (or assembly text). Vector code comes in ready made, so LLVM's vectorisers and
    unrollers stay off: they would only cost time."""
    import llvmlite.binding as llvm
    tm = _target_machine(target)
    module = llvm.parse_assembly(text, llvm.create_context())
    module.triple = target.triple
    if optimise:
        options = llvm.create_pipeline_tuning_options(speed_level=1)
        options.loop_vectorization = options.slp_vectorization = False
        options.loop_unrolling = options.loop_interleaving = False
        builder = llvm.create_pass_builder(tm, options)
        builder.getModulePassManager().run(module, builder)
    return tm.emit_assembly(module) if assembly else tm.emit_object(module)


@functools.cache
def _target_key(target: CpuTarget) -> bytes:
    import llvmlite
    return "|".join((llvmlite.__version__, PIPELINE, target.triple, target.cpu, target.features)).encode()


def object_key(text: str, target: CpuTarget) -> str:
    """The name under which the object made from `text` is cached."""
    return hashlib.sha256(_target_key(target) + b"\0" + text.encode()).hexdigest()


def compile_text(text: str, target: CpuTarget | None = None) -> bytes:
    """Object bytes for `text`, from the disk cache where possible. A file there starts with its content's digest, so a
    damaged one is made anew."""
    target = target or host_target()
    name = object_key(text, target)
    data = read_cached("obj", name) or b""
    if hashlib.sha256(data[32:]).digest() == data[:32]:
        return data[32:]
    blob = optimise_and_emit(text, target)
    write_cached("obj", name, hashlib.sha256(blob).digest() + blob)
    return blob


def compile_many(texts: list[str], target: CpuTarget | None = None) -> list[bytes]:
    """Object bytes of several modules, compiled side by side (LLVM runs without Python's lock)."""
    target = target or host_target()
    if len(texts) == 1 or (os.cpu_count() or 1) == 1:
        return [compile_text(text, target) for text in texts]
    from concurrent.futures import ThreadPoolExecutor
    _target_machine(target)
    with ThreadPoolExecutor(min(len(texts), os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda text: compile_text(text, target), texts))


# ---------------------------------------------------------------- loading

@functools.cache
def _jit(target: CpuTarget):
    import llvmlite.binding as llvm
    return llvm.create_lljit_compiler(_target_machine(target), use_jit_link=False, suppress_errors=False)


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
    return Library([compile_text(text, target)], exports, imports, target)
