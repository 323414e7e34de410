"""Weights on disk: safetensors, written in one step, read with every mismatch listed before anything is changed.

Holds no model: it moves named arrays between a file and the names, dtypes and shapes that a model expects.
"""
from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32", "int16": "I16",
          "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL"}


class CheckpointError(Exception):
    """A checkpoint cannot be read or does not fit the model. `problems` lists all that is wrong with it."""

    def __init__(self, message: str, problems: Iterable[str] = ()):
        self.message, self.problems = message, list(problems)
        super().__init__("\n".join([message, *(f"  {p}" for p in self.problems)]))


@dataclass
class Expected:
    """One array that a model wants: where it may be found besides `path`, and how it lies there."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    keys: list[tuple[str, bool]] = field(default_factory=list)        # foreign keys; True: the last two dims are swapped there


def atomic_write(path: str | os.PathLike, data: Iterable[bytes] | bytes) -> None:
    """Write a file so that readers see the old content or all of the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as f:
            for piece in ([data] if isinstance(data, bytes) else data):
                f.write(piece)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, _mode(path))                                # mkstemp makes it private
        os.replace(temporary, path)
    except OSError as e:                                                # a full disk: the error itself does not say where
        os.unlink(temporary)
        raise OSError(e.errno, e.strerror, str(path)) from None
    except BaseException:
        os.unlink(temporary)
        raise


def _mode(path: Path) -> int:
    """That of the file which is replaced; of a new one as the umask wants it."""
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError:
        mask = os.umask(0o022)
        os.umask(mask)
        return 0o666 & ~mask


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file with these arrays; widest elements first, so that all lie aligned."""
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    offset, data = 0, []
    for name, a in sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize):
        if a.dtype.name not in _NAMES:
            raise TypeError(f"{name}: safetensors has no {a.dtype}")
        a = np.asarray(a, a.dtype.newbyteorder("<"), order="C")
        header[name] = {"dtype": _NAMES[a.dtype.name], "shape": list(a.shape), "data_offsets": [offset, offset + a.nbytes]}
        offset += a.nbytes
        data.append(a)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)                                     # the data begins aligned
    atomic_write(path, (len(text).to_bytes(8, "little"), text, *(a.reshape(-1).view(np.uint8).data for a in data)))


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """All arrays of a safetensors file; CheckpointError where it is none."""
    from safetensors import SafetensorError, deserialize
    try:
        if Path(path).is_char_device() or Path(path).is_block_device():
            raise CheckpointError(f"cannot read {path}: it is a device")
        data = Path(path).read_bytes()
    except OSError as e:
        raise CheckpointError(f"cannot read {path}: {e.strerror}") from None
    try:
        tensors = deserialize(data)
    except (SafetensorError, ValueError) as e:
        hint = ": this is a PyTorch pickle, which could run code; convert it to safetensors" if data[:2] in (b"PK", b"\x80\x02") else f": {e}"
        raise CheckpointError(f"{path} is not a safetensors file, or a damaged one: its header and its length do not agree" if "not fully covered" in str(e) else
                              f"{path} is not a safetensors file{hint}") from None
    out = {}
    for name, t in tensors:
        dtype = _dtype(t["dtype"])
        if dtype is None:
            raise CheckpointError(f"{path}: {name} has elements of type {t['dtype']}, which Engram does not know")
        out[name] = np.frombuffer(t["data"], dtype).reshape(t["shape"])
    return out


def _dtype(name: str) -> np.dtype | None:
    if name == "BF16":
        import ml_dtypes
        return np.dtype(ml_dtypes.bfloat16)
    return next((np.dtype(k) for k, v in _NAMES.items() if v == name), None)


def match(arrays: Mapping[str, np.ndarray], expected: Iterable[Expected], ignore: Iterable[str] = (), source: str = "the checkpoint",
          optional: Iterable[str] = (), fresh: bool = True) -> dict[str, np.ndarray]:
    """path -> array in the model's dtype and layout, or one CheckpointError that lists every mismatch. The arrays are new ones; without
    `fresh`, what needs no conversion is the array given.

    An array is found under the model's own path or one of its foreign keys. Keys that nothing wants are errors, but for `ignore`;
    a path of `optional` may be missing. Float arrays convert between float types; integers must fit.
    """
    problems, out, used = [], {}, set()
    optional = set(optional)
    for e in expected:
        key, swap = next(((k, s) for k, s in [(e.path, False), *e.keys] if k in arrays), (None, False))
        if key is None:
            if e.path not in optional:
                names = " or ".join([e.path, *(k for k, _ in e.keys if k != e.path)])
                problems.append(f"missing: {names} {list(e.shape)}")
            continue
        used.add(key)
        a = arrays[key]
        if swap and a.ndim >= 2:
            a = np.swapaxes(a, -1, -2)
        if a.shape != tuple(e.shape):
            how = " (after swapping its last two dims)" if swap else ""
            problems.append(f"{key}: expected shape {list(e.shape)}, got {list(a.shape)}{how}")
            continue
        try:
            out[e.path] = convert(a, e.dtype) if fresh or a.dtype != e.dtype else a
        except ValueError as err:
            problems.append(f"{key}: {err}")
    ignored = set(ignore)
    problems += [f"unexpected: {k} {list(arrays[k].shape)}" for k in arrays if k not in used and k not in ignored]
    if problems:
        raise CheckpointError(f"{source} does not fit the model:", problems)
    return out


def convert(a: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`a` as a new contiguous array of that dtype; ValueError where the kind differs or a value does not fit."""
    a, dtype = np.asarray(a), np.dtype(dtype)
    if a.dtype == dtype:
        return np.array(a, order="C")
    floats = _is_float(a.dtype), _is_float(dtype)
    if floats == (True, True):
        with np.errstate(over="ignore"):
            out = a.astype(dtype, order="C")
        if dtype.itemsize < a.dtype.itemsize and not np.array_equal(np.isfinite(a), np.isfinite(out)):
            raise ValueError(f"values of {a.dtype} that do not fit {dtype}")
        return out
    if a.dtype.kind in "iu" and dtype.kind in "iu":
        info = np.iinfo(dtype)
        if a.size and (int(a.min()) < info.min or int(a.max()) > info.max):
            raise ValueError(f"values from {a.min()} to {a.max()} do not fit {dtype}")
        return a.astype(dtype, order="C")
    raise ValueError(f"expected {dtype}, got {a.dtype}")


def _is_float(dtype: np.dtype) -> bool:
    return dtype.kind == "f" or dtype.name == "bfloat16"
