"""Finding an OpenCL device that works, and what it can do.  No code is generated and no program is run here.

A listed device may still be unable to build anything (a driver that does not know the processor, say), so every candidate
builds and runs a tiny kernel first; the ones that fail are kept with the reason, for the error message.  pyopencl is
imported inside functions: everything else in this folder works without it.
"""
from __future__ import annotations

import functools
import os
import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...compiler.diagnostics import BackendUnavailable

ENV = "ENGRAM_OPENCL_DEVICE"
HINT = ("install a GPU driver with OpenCL, or run OpenCL on the processor: `apt install pocl-opencl-icd` (Debian, Ubuntu), "
        "`dnf install pocl` (Fedora); `--backend cpu` needs neither")


@dataclass(frozen=True)
class Caps:
    """What the emitter must know about a device. The defaults describe a common GPU: they serve to print code without one."""

    name: str = "generic"
    cpu: bool = False              # work-items of a group run one after the other on a core: no local memory, wider tiles
    fp64: bool = True
    exact_divide: bool = True      # -cl-fp32-correctly-rounded-divide-sqrt is supported
    fma: bool = True               # fused multiply-add in hardware; else contractions and sums use two operations
    max_group: int = 256
    local_bytes: int = 32768
    units: int = 16
    vector: int = 4                # floats in a native vector (processors)


@dataclass
class Device:
    """A device in use: its context and in-order queue, shared by all programs of the process."""

    caps: Caps
    cl_device: Any
    context: Any
    queue: Any
    pool: Any                      # memory pool: freed buffers are reused, safe because the queue is in order


@dataclass(frozen=True)
class Candidate:
    """A listed device and, where it failed the probe, why."""

    index: int
    label: str
    gpu: bool
    problem: str | None


_PROBE = "__kernel void engram_probe(__global int *x) { int i = (int)get_global_id(0); x[i] = x[i] * 3 + i; }"
_lock = threading.Lock()


def available() -> tuple[bool, str]:
    """Whether a device works here, and its name or the reason why none does."""
    try:
        return True, device().caps.name
    except BackendUnavailable as e:
        return False, e.diagnostics[0].message


def candidates() -> list[Candidate]:
    """Every listed device, probed. For people: `device()` probes only until one works."""
    out = []
    for i, d in enumerate(_listed()):
        try:
            _open(d)
            problem = None
        except Exception as e:                               # a driver may raise anything
            problem = _reason(e)
        out.append(Candidate(i, _label(d), _is_gpu(d), problem))
    return out


def device() -> Device:
    """The device in use: $ENGRAM_OPENCL_DEVICE (an index, or a part of the name), else the first GPU that works, else the first
    that works. BackendUnavailable when there is none."""
    with _lock:
        return _device(os.environ.get(ENV, "").strip())


def profile(d: Device) -> None:
    """From now on the device's queue notes when each kernel began and ended."""
    import pyopencl as cl
    if not d.queue.properties & cl.command_queue_properties.PROFILING_ENABLE:
        d.queue.finish()
        d.queue = cl.CommandQueue(d.context, d.cl_device, properties=cl.command_queue_properties.PROFILING_ENABLE)


@functools.cache
def _device(choice: str) -> Device:
    listed = list(enumerate(_listed()))
    if not listed:
        raise BackendUnavailable("no OpenCL device on this machine", HINT)
    names = "; ".join(f"{i}: {_label(d)}" for i, d in listed)
    if choice:
        wanted = [(i, d) for i, d in listed if (choice.isdecimal() and int(choice) == i) or
                  (not choice.isdecimal() and choice.lower() in _label(d).lower())]
        if not wanted:
            raise BackendUnavailable(f"{ENV}={choice} names none of the OpenCL devices: {names}")
    else:
        wanted = sorted(listed, key=lambda p: not _is_gpu(p[1]))
    problems = []
    for i, d in wanted:
        try:
            return _open(d)
        except Exception as e:
            problems.append(f"{i}: {_label(d)}: {_reason(e)}")
    raise BackendUnavailable("no OpenCL device works: " + "; ".join(problems), HINT)


def _listed() -> list:
    try:
        import pyopencl as cl
    except Exception as e:                                   # no package, or no loader library
        raise BackendUnavailable(f"pyopencl cannot be loaded: {_reason(e)}", "pip install pyopencl") from e
    found = []
    try:
        platforms = cl.get_platforms()
    except cl.Error:                                         # the loader finds no driver
        return []
    for p in platforms:
        try:
            found += p.get_devices()
        except cl.Error:
            continue
    return found


def _open(d) -> Device:
    """Context and queue of a device that proves to work; raises whatever the driver raises otherwise."""
    import pyopencl as cl
    from pyopencl import tools

    context = cl.Context([d])
    queue = cl.CommandQueue(context, d)
    x = np.arange(64, dtype=np.int32)
    buffer = cl.Buffer(context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=x)
    kernel = cl.Kernel(build(context, d, _PROBE, []), "engram_probe")
    kernel(queue, (64,), (8,), buffer)
    y = np.empty_like(x)
    cl.enqueue_copy(queue, y, buffer)
    if not np.array_equal(y, x * 4):
        raise RuntimeError("a test kernel gives wrong results")
    return Device(_caps(d), d, context, queue, tools.MemoryPool(tools.ImmediateAllocator(queue)))


def build(context, d, source: str, options: list[str]):
    """A built cl.Program, through pyopencl's binary cache in our cache folder."""
    import warnings

    import pyopencl as cl

    from ...compiler.cache_dir import cache_dir

    folder = cache_dir("opencl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")                      # CompilerWarning: build logs of harmless notes
        if folder is None:
            program = cl.Program(context, source)
            return program.build(options=options, devices=[d], cache_dir=False)
        return cl.Program(context, source).build(options=options, devices=[d], cache_dir=str(folder))


def _caps(d) -> Caps:
    import pyopencl as cl

    extensions = d.extensions.split()
    config = cl.device_fp_config
    return Caps(
        name=_label(d),
        cpu=not _is_gpu(d) and bool(d.type & cl.device_type.CPU),
        fp64="cl_khr_fp64" in extensions or bool(getattr(d, "double_fp_config", 0)),
        exact_divide=bool(d.single_fp_config & config.CORRECTLY_ROUNDED_DIVIDE_SQRT),
        fma=bool(d.single_fp_config & config.FMA),
        max_group=int(d.max_work_group_size),
        local_bytes=int(d.local_mem_size),
        units=int(d.max_compute_units),
        vector=int(d.native_vector_width_float),
    )


def _is_gpu(d) -> bool:
    import pyopencl as cl
    return bool(d.type & cl.device_type.GPU)


def _label(d) -> str:
    return f"{d.name.strip()} ({d.platform.name.strip()})"


def _reason(e: Exception) -> str:
    lines = [x.strip() for x in str(e).splitlines() if x.strip()]
    return lines[0][:200] if lines else type(e).__name__
