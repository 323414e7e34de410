"""The machine that CPU code is made for: the description every emitter derives its tiles and vector widths from.

Compiling for it and loading the result is compile.py's business; nothing here knows about tensors or loops.

`ENGRAM_CPU` (avx512 | avx2 | generic | neon) lowers the description, so that tests cover other machines' code paths.
"""
from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

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
    def bf16_dot(self) -> bool:
        """Whether it multiplies pairs of bf16 and adds both products to an f32 (vdpbf16ps)."""
        return self.name == "avx512" and "+avx512bf16" in self.features.split(",")

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
