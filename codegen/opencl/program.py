"""OpenClProgram: a loop-stage module built for the device in use, and called with arrays. See docs/ARCHITECTURE.md section 5."""
from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np

from ...compiler.ir.core import Func, Module
from ...compiler.ir.types import DType, dtype_of
from ...compiler.ops.work import Kernel
from . import device as devices
from .device import Caps, Device
from .emit import Emitted, emit
from .host import Runtime


class DeviceArray:
    """An array in device memory. A donated one is spent: its memory belongs to a result."""

    __slots__ = ("_memory", "_runtime", "shape", "dtype", "__weakref__")

    def __init__(self, memory, runtime: Runtime, shape: tuple[int, ...], dtype: DType):
        self._memory, self._runtime, self.shape, self.dtype = memory, runtime, shape, dtype

    @property
    def memory(self):
        """The OpenCL buffer; ValueError once donated."""
        if self._memory is None:
            raise ValueError("this array was donated to a call, and its memory is now that of the result")
        return self._memory

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.bytes

    def numpy(self) -> np.ndarray:
        """A copy on the host; waits for the device."""
        return self._runtime.download(self.memory, self.shape, self.dtype)

    def __array__(self, dtype=None, copy=None):
        a = self.numpy()
        return a if dtype is None else a.astype(dtype)

    def __repr__(self):
        return f"<DeviceArray {self.dtype}{list(self.shape)}{'' if self._memory is not None else ' (donated)'}>"


class OpenClProgram:
    """Functions of a loop-stage module on an OpenCL device."""

    def __init__(self, module: Module, device: Device | None = None, profile: bool = False):
        self.module = module
        self.device = device or devices.device()
        if profile:
            devices.profile(self.device)
        self._lock, self._profile = threading.Lock(), profile
        self.emitted = self._build(self.device.caps)
        self._runtime = rt = Runtime(self.device, self.emitted.sites, profile)
        rt.constants = [rt.upload(c) for c in self.emitted.constants]
        rt.keep(rt.constants)

    def _build(self, caps: Caps) -> Emitted:
        """Emit and build; once more with smaller groups where a kernel's registers do not allow the usual ones."""
        emitted = emit(self.module, caps, self._profile)
        if not emitted.launches:
            return emitted
        program = _build(self.device, emitted.source)
        limit = min(launch.prepare(program, self.device.cl_device) for launch in emitted.launches)
        if limit < max(math.prod(launch.local_size) for launch in emitted.launches) and limit < caps.max_group:
            return self._build(replace(caps, max_group=limit))
        return emitted

    def source(self) -> str:
        """All OpenCL C of the program."""
        return self.emitted.source

    def profile(self) -> list[tuple[Kernel, int, float, float]]:
        """With profile=True: (kernel, times run, seconds in all, seconds at best) since the last call, by the device's own clock."""
        return self._runtime.profile()

    def built(self) -> float:
        """With profile=True: the seconds of calls since the last look in which kernels were still being built."""
        seconds, self._runtime.built = self._runtime.built, 0.0
        return seconds

    # ---- arrays ----
    def to_device(self, array: np.ndarray) -> DeviceArray:
        array = np.asarray(array)
        return DeviceArray(self._runtime.upload(array), self._runtime, array.shape, dtype_of(array.dtype))

    def to_host(self, handle) -> np.ndarray:
        return handle.numpy() if isinstance(handle, DeviceArray) else np.asarray(handle)

    # ---- calls ----
    def call(self, name: str, args: list) -> list[DeviceArray]:
        """Run a function: arrays or handles in, handles out. ValueError for arguments that do not fit, RuntimeError_ for run-time errors."""
        func = self.module.funcs.get(name)
        if func is None:
            raise ValueError(f"no function named {name}")
        with self._lock:
            return self._call(func, args)

    @property
    def progress(self) -> int:
        """Steps enqueued by the call that runs, or done by the last one: of functions with a loop of whole steps (scf.scan with `progress`)."""
        return self._runtime.progress

    def cancel(self, now: bool = False) -> None:
        """From another thread or a signal handler: the call that runs returns after its current step (`now` makes no difference: each
        step's kernels are enqueued already). To be said again until it has returned."""
        self._runtime.cancelled = True

    def _call(self, func: Func, args: list) -> list[DeviceArray]:
        rt = self._runtime
        n_in = func.attrs.get("n_inputs", len(func.args))
        n_out = func.attrs.get("n_outputs", len(func.args) - n_in)
        if len(args) != n_in:
            raise ValueError(f"@{func.name} takes {n_in} arrays, got {len(args)}")
        donated = {int(a): int(r) for a, r in func.attrs.get("donate", [])}
        names = func.attrs.get("arg_names") or [v.name or str(i) for i, v in enumerate(func.args)]
        for i, a in enumerate(args):
            _check(func, i, names[i], a)
        memory = []
        for i, a in enumerate(args):
            if not isinstance(a, DeviceArray):
                memory.append(rt.upload(np.asarray(a)))
            elif i in donated and any(b is a for j, b in enumerate(args) if j != i):
                fresh = rt.allocate(a.nbytes)            # given twice: the donated one must be a copy
                rt.copy(fresh, 0, a.memory, 0, a.nbytes)
                memory.append(fresh)
            else:
                memory.append(a.memory)
        outputs: list = [None] * n_out
        for a, r in donated.items():
            outputs[r] = memory[a]
        types = [v.type for v in func.args[n_in:n_in + n_out]]
        outputs = [rt.allocate(t.nbytes) if m is None else m for m, t in zip(outputs, types)]
        host = self.emitted.funcs[func.name]
        rt.reserve(host.arena)
        for i in donated:
            if isinstance(args[i], DeviceArray):
                args[i]._memory = None
        rt.progress, rt.cancelled = 0, False
        host.run([(m, 0) for m in (*memory, *outputs)], 0, rt)
        if host.fails:
            rt.check()
        else:
            rt.queue.flush()
        return [DeviceArray(m, rt, tuple(t.shape), t.dtype) for m, t in zip(outputs, types)]


def _check(func: Func, i: int, name: str, a) -> None:
    t = func.args[i].type
    if isinstance(a, DeviceArray):
        shape, dtype = a.shape, a.dtype
        a.memory                                          # noqa: B018  (raises when donated)
    else:
        a = np.asarray(a)
        shape = a.shape
        try:
            dtype = dtype_of(a.dtype)
        except KeyError:
            raise ValueError(f"argument {name} of @{func.name}: arrays of {a.dtype} are not supported") from None
    if tuple(shape) != tuple(t.shape) or dtype is not t.dtype:
        want, got = (f"{d}[{','.join(map(str, s))}]" for d, s in ((t.dtype, t.shape), (dtype, shape)))
        raise ValueError(f"argument {name} of @{func.name}: expected {want}, got {got}")


def _build(device: Device, source: str):
    """The built program; a build error is a bug of ours, so the source is written out for a report."""
    options = ["-cl-fp32-correctly-rounded-divide-sqrt"] if device.caps.exact_divide else []
    try:
        return devices.build(device.context, device.cl_device, source, options)
    except Exception as e:
        import tempfile

        with tempfile.NamedTemporaryFile("w", suffix=".cl", prefix="engram-", delete=False) as f:
            f.write(source)
        raise RuntimeError(f"internal error: generated OpenCL C does not build on {device.caps.name}; the source is in {f.name}\n{e}") from e


def source_text(module: Module, caps: Caps | None = None) -> str:
    """The OpenCL C of a module: for the device in use if one works, else for a common GPU."""
    if caps is None:
        ok, _ = devices.available()
        caps = devices.device().caps if ok else Caps()
    return emit(module, caps).source
