"""Data sets that a train block names: `dataset("digits")`, `dataset("mnist", "data/mnist")`, `dataset("npz", "mine.npz")` ...

Reads files only; download.py fetches them where a user asks for it. Every header and size is checked against the file before memory is taken, and what is
wrong with a file is a `DatasetError` that names it. Splitting, shuffling and batching are the runner's business (train.py).
"""
from __future__ import annotations

import gzip
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .compiler.diagnostics import CompileError, Diagnostic, did_you_mean

if TYPE_CHECKING:
    from .tokenizers import Tokenizer

MAX_BYTES = 16 << 30                       # of one array; a header that asks for more is taken for a broken file


class DatasetError(CompileError):
    """A data set cannot be had: unknown name, missing or broken file, wrong arguments. `hint` says what to do about it.

    It carries a diagnostic without a span; the front end, which knows where `dataset(...)` was written, adds it.
    `absent`: its files are not here, though the program may be right; `shapes`, where they are known all the same, is a data set of
    nothing but zeros, to check a program with.
    """

    def __init__(self, message: str, hint: str | None = None, absent: bool = False, shapes: Dataset | None = None):
        self.message, self.hint, self.absent, self.shapes = message, hint, absent, shapes
        super().__init__(Diagnostic("error", None, message, hint=hint))

    def __str__(self) -> str:
        return self.message + (f" ({self.hint})" if self.hint else "")


@dataclass
class Dataset:
    """Named arrays with a common first dimension: the samples.

    order "shuffled": samples may be drawn in any order. "streams": sample k continues in sample k + 1, so batches must keep
    row b going on in the next batch (the runner does). `info` holds what else belongs to the data, such as a vocabulary.
    `test`: the last so many samples are its test part, which a train block without `holdout` holds out.
    """

    name: str
    fields: dict[str, np.ndarray]
    order: str = "shuffled"
    info: dict = field(default_factory=dict)
    test: int | None = None

    def __post_init__(self):
        lengths = {k: len(v) for k, v in self.fields.items()}
        if len(set(lengths.values())) > 1:
            raise DatasetError(f"data set {self.name}: the fields have different lengths: "
                               + ", ".join(f"{k} {n:,}" for k, n in lengths.items()))
        if not lengths or not self.n:
            raise DatasetError(f"data set {self.name} holds no samples")

    @property
    def n(self) -> int:
        """The number of samples."""
        return len(next(iter(self.fields.values())))

    def __repr__(self) -> str:
        parts = ", ".join(f"{k}: {v.dtype}{list(v.shape)}" for k, v in self.fields.items())
        return f"Dataset({self.name!r}, {parts})"


# ---- the registry ---------------------------------------------------------------------------------------------------

LOADERS: dict[str, Callable[..., Dataset]] = {}


def loader(name: str):
    """Registers a function as the loader of data sets called `name`."""
    def register(fn):
        LOADERS[name] = fn
        return fn
    return register


def dataset(name: str, *args, base: Sequence[str | os.PathLike] = (), **kwargs) -> Dataset:
    """The data set of that name. A relative path among the arguments is looked for in the `base` folders, then here."""
    import inspect

    fn = LOADERS.get(name)
    if fn is None:
        near = did_you_mean(name, LOADERS)
        if not near and _looks_like_a_path(name):
            near_text = f'a file of arrays is dataset("npz", "{name}")'
        else:
            near_text = f"did you mean {near!r}?" if near else f"known: {', '.join(LOADERS)}"
        raise DatasetError(f"unknown data set {name!r}", near_text)
    try:
        bound = inspect.signature(fn).bind(*args, **kwargs)
    except TypeError as e:
        raise DatasetError(f"dataset({name!r}): {e}", f"it is used as {_usage(name, fn)}") from None
    if "path" in bound.arguments:
        bound.arguments["path"] = _find(bound.arguments["path"], base)
    return fn(*bound.args, **bound.kwargs)


def takes_path(name: str) -> bool:
    """Whether data sets of that name are read from a path that the user gives."""
    import inspect
    return "path" in inspect.signature(LOADERS[name]).parameters


def _looks_like_a_path(name: str) -> bool:
    return "/" in name or "." in name


def _usage(name: str, fn) -> str:
    import inspect
    parts = [p.name if p.default is p.empty else f"{p.name} = {_nn(p.default)}" for p in inspect.signature(fn).parameters.values()]
    return f"dataset({', '.join([_nn(name), *parts])})"


def _nn(value) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) or value is None else str(value)


def _find(path, base) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise DatasetError(f"expected a path, got {path!r}")
    path = Path(path).expanduser()
    for folder in base:
        candidate = Path(folder) / path
        if not path.is_absolute() and candidate.exists():
            return candidate
    return path


# ---- bundled --------------------------------------------------------------------------------------------------------

@loader("digits")
def digits() -> Dataset:
    """1,797 real handwritten digits, 8x8 (UCI): x f32[N, 64] in 0..1, y i32[N]. Bundled."""
    arrays = _npz_arrays(Path(__file__).parent / "data" / "digits.npz")
    x = arrays["images"].reshape(-1, 64).astype(np.float32) / np.float32(16)
    return Dataset("digits", {"x": x, "y": arrays["labels"].astype(np.int32)})


@loader("xor")
def xor() -> Dataset:
    """The four cases of exclusive or: x f32[4, 2], y f32[4, 1]."""
    x = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], np.float32)
    return Dataset("xor", {"x": x, "y": (x[:, :1] != x[:, 1:]).astype(np.float32)})


@loader("random")
def random(n: int = 1024, x: Sequence[int] = (), y: Sequence[int] = (), x_below: int | None = None, y_below: int | None = None,
           seed: int = 0) -> Dataset:
    """Random numbers, to time and to try things with: fields x and y of n samples, each of the sizes given.

    Normal f32 numbers; where `x_below` or `y_below` is given, i64 numbers from 0 to below it. Equal arguments give equal arrays.
    """
    rng = np.random.default_rng(seed)
    fields = {}
    for name, sizes, below in (("x", x, x_below), ("y", y, y_below)):
        sizes = list(sizes) if isinstance(sizes, Sequence) else [sizes]
        for what, v in ((name, sizes), ("n", [n]), (f"{name}_below", [1 if below is None else below])):
            if not all(isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in v):
                raise DatasetError(f"random: {what} = {v if what == name else v[0]!r}, expected " + ("positive sizes" if what == name else "a positive integer"))
        shape = (n, *sizes)
        if _numel(shape) * 8 > MAX_BYTES:
            raise DatasetError(f"random: {name} of {list(shape)} takes {_numel(shape) * 8:,} bytes; expected at most {MAX_BYTES:,}")
        fields[name] = rng.standard_normal(shape, np.float32) if below is None else rng.integers(0, below, shape)
    return Dataset("random", fields)


# ---- files of arrays ------------------------------------------------------------------------------------------------

@loader("npz")
def npz(path: Path) -> Dataset:
    """All arrays of a NumPy .npz file, by their names; their first dimensions must agree."""
    arrays = _npz_arrays(path)
    for k, a in arrays.items():
        if not k.isidentifier():
            raise DatasetError(f"{path}: the array {k!r} cannot be a field: its name is not an identifier")
        if a.dtype.kind not in "fiub":
            raise DatasetError(f"{path}: the array {k!r} has elements of type {a.dtype}; expected numbers")
        if a.ndim == 0:
            raise DatasetError(f"{path}: the array {k!r} is a single number; expected one row per sample")
    return Dataset(path.stem, arrays)


def _npz_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file. Object arrays (pickles) are refused; each size is checked against the zip's directory."""
    _need_file(path)
    try:
        with zipfile.ZipFile(path) as z:
            out = {}
            for item in z.infolist():
                if item.filename.endswith(".npy"):
                    with z.open(item) as f:
                        out[item.filename.removesuffix(".npy")] = _read_npy(f, item.file_size, f"{path}: {item.filename}")
            if not out:
                raise DatasetError(f"{path} holds no arrays")
            return out
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, NotImplementedError, RuntimeError) as e:
        raise DatasetError(f"{path} is not a readable .npz file: {e}") from None


def _read_npy(f, size: int, what: str) -> np.ndarray:
    from numpy.lib import format as npy
    try:
        version = npy.read_magic(f)
        shape, fortran, dtype = (npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0)(f)
    except (ValueError, EOFError) as e:
        raise DatasetError(f"{what} is not a NumPy array: {e}") from None
    if dtype.hasobject:
        raise DatasetError(f"{what} holds Python objects, which are not read: they could run code")
    want = _numel(shape) * dtype.itemsize
    have = size - f.tell()
    if want != have or want > MAX_BYTES:
        raise DatasetError(f"{what}: {dtype}{list(shape)} takes {want:,} bytes, the file holds {have:,}")
    a = np.frombuffer(f.read(want), dtype)
    a = a.reshape(shape, order="F" if fortran else "C")
    return np.asarray(a, dtype.newbyteorder("="), order="C")          # ascontiguousarray would make a rank 0 array rank 1


def _numel(shape) -> int:
    n = 1
    for d in shape:
        n *= int(d)                        # Python integers: a crafted header cannot overflow them
    return n


def _need_file(path: Path) -> None:
    if not path.exists():
        raise DatasetError(f"no such file: {path}", absent=True)
    if path.is_dir():
        raise DatasetError(f"{path} is a folder, expected a file")


# ---- MNIST and its relatives: IDX files -----------------------------------------------------------------------------

_IDX_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_STAND_IN = 10_000


@loader("mnist")
def mnist(path: Path, part: str = "all", first: int | None = None) -> Dataset:
    """MNIST and files like it, from a folder of IDX files (plain or .gz): x u8[N, 28, 28], y i64[N].

    part "all" has the training samples, then the test samples (t10k-*), which are held out unless `holdout` says otherwise;
    where there are no t10k files, the last 10,000 training samples (a sixth of fewer) stand in. "train" and "test" give one of them;
    `first` takes the first so many of what the part has.
    """
    return _idx_folder("mnist", path, part, first)


@loader("fashion_mnist")
def fashion_mnist(path: Path, part: str = "all", first: int | None = None) -> Dataset:
    """Fashion-MNIST, in MNIST's files and with the same parts: x u8[N, 28, 28], y i64[N]."""
    return _idx_folder("fashion_mnist", path, part, first)


def _idx_folder(name: str, path: Path, part: str, first: int | None) -> Dataset:
    if first is not None and (not isinstance(first, int) or isinstance(first, bool) or first < 1):
        raise DatasetError(f"{name}: first = {first!r}, expected a positive integer")
    if part not in ("all", "train", "test"):
        raise DatasetError(f"unknown part {part!r} of {name}", 'expected "all", "train" or "test"')
    if not path.is_dir():
        raise DatasetError(f"no such folder: {path}" if not path.exists() else f"{path} is a file, expected a folder of IDX files",
                           f"--set data=DIR names another folder; `engram data {name} --to {path}` downloads the files", absent=True,
                           shapes=_zeros(name, first or (70_000 if part == "all" else 60_000 if part == "train" else 10_000), (28, 28),
                                         part == "all" and first is None))
    x, y = _idx_pair(path, "train")
    info = {"test": "t10k"}
    if _idx_file(path, "t10k-images-idx3-ubyte"):
        xt, yt = _idx_pair(path, "t10k")
        if xt.shape[1:] != x.shape[1:]:
            raise DatasetError(f"{path}: training images are {list(x.shape[1:])}, test images {list(xt.shape[1:])}")
        x, y = np.concatenate([x, xt]), np.concatenate([y, yt])
        n_test = len(xt)
    else:
        n_test = min(_STAND_IN, len(x) // 6)
        info["test"] = f"the last {n_test:,} training samples stand in for the test set (no t10k files)"
    cut = {"all": slice(None), "train": slice(0, len(x) - n_test), "test": slice(len(x) - n_test, None)}[part]
    whole = part == "all" and first is None
    return Dataset(name, {"x": x[cut][:first], "y": y[cut][:first]}, info=info if whole else {}, test=n_test or None if whole else None)


def _zeros(name: str, n: int, shape: tuple[int, ...], with_test: bool) -> Dataset:
    """What a set of pictures with class numbers looks like; takes no memory."""
    x, y = (np.broadcast_to(dtype(0), (n, *s)) for dtype, s in ((np.uint8, shape), (np.int64, ())))
    return Dataset(name, {"x": x, "y": y}, test=10_000 if with_test else None)


def _idx_file(folder: Path, stem: str) -> Path | None:
    # some distributions write train-images.idx3-ubyte
    for name in (stem, stem.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            if (folder / (name + suffix)).is_file():
                return folder / (name + suffix)
    return None


def _idx_pair(folder: Path, which: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for kind, rank in (("images-idx3", 3), ("labels-idx1", 1)):
        stem = f"{which}-{kind}-ubyte"
        file = _idx_file(folder, stem)
        if file is None:
            raise DatasetError(f"no {stem} or {stem}.gz in {folder}", f"`engram data mnist --to {folder}` (or fashion_mnist) downloads the files")
        arrays.append(read_idx(file, rank))
    x, y = arrays
    if len(x) != len(y):
        raise DatasetError(f"{folder}: {len(x):,} {which} images but {len(y):,} labels")
    return x, y.astype(np.int64)


def read_idx(path: Path, rank: int | None = None) -> np.ndarray:
    """An IDX file, plain or gzip. The header's sizes must be those of the content."""
    _need_file(path)
    try:
        with (gzip.open(path) if path.suffix == ".gz" else open(path, "rb")) as f:
            head = f.read(4)
            if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in _IDX_DTYPES:
                raise DatasetError(f"{path} is not an IDX file: it begins with {head.hex() or 'nothing'}")
            if rank is not None and head[3] != rank:
                raise DatasetError(f"{path} has {head[3]} dimensions, expected {rank}")
            sizes = f.read(4 * head[3])
            if len(sizes) < 4 * head[3]:
                raise DatasetError(f"{path} ends within its header")
            shape = struct.unpack(f">{head[3]}I", sizes)
            dtype = np.dtype(_IDX_DTYPES[head[2]])
            want = _numel(shape) * dtype.itemsize
            if want > MAX_BYTES:
                raise DatasetError(f"{path} says that it holds {list(shape)} elements: {want:,} bytes; expected at most {MAX_BYTES:,}")
            _check_plausible(path, want)
            data = _read_exactly(f, want)
            if len(data) != want or f.read(1):
                have = f"only {len(data):,}" if len(data) < want else "more"
                raise DatasetError(f"{path}: {list(shape)} elements take {want:,} bytes, it holds {have}")
    except (OSError, EOFError, zlib.error) as e:
        raise DatasetError(f"cannot read {path}: {e}") from None
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _read_exactly(f, n: int) -> bytes:
    """Up to n bytes, in pieces: a stream that is shorter than its header says never takes n bytes of memory."""
    parts, left = [], n
    while left > 0:
        piece = f.read(min(left, 1 << 24))
        if not piece:
            break
        parts.append(piece)
        left -= len(piece)
    return b"".join(parts)


def _check_plausible(path: Path, want: int) -> None:
    """A file of s bytes cannot hold more than s bytes plain, or about 1032 s from deflate."""
    size = path.stat().st_size
    if want > size * (1032 if path.suffix == ".gz" else 1):
        raise DatasetError(f"{path}: its header promises {want:,} bytes, more than a file of {size:,} bytes can hold")


# ---- CIFAR-10 -------------------------------------------------------------------------------------------------------

@loader("cifar10")
def cifar10(path: Path) -> Dataset:
    """CIFAR-10, from the folder of its binary version: x u8[N, 3, 32, 32], y i64[N]; the test batch, when there, comes last and is held
    out unless `holdout` says otherwise."""
    if not path.is_dir():
        raise DatasetError(f"no such folder: {path}", f"it holds data_batch_1.bin ... test_batch.bin; `engram data cifar10 --to {path}` downloads them", absent=True,
                           shapes=_zeros("cifar10", 60_000, (3, 32, 32), True))
    folder = path / "cifar-10-batches-bin" if (path / "cifar-10-batches-bin").is_dir() else path
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    files = [folder / n for n in names if (folder / n).is_file()]
    if not files:
        raise DatasetError(f"no data_batch_1.bin in {folder}", "Engram reads the binary version of CIFAR-10")
    records = []
    for file in files:
        size = file.stat().st_size
        if size == 0 or size % 3073:
            raise DatasetError(f"{file}: {size:,} bytes are not a whole number of 3,073-byte records")
        a = np.fromfile(file, np.uint8).reshape(-1, 3073)
        if a[:, 0].max() > 9:
            raise DatasetError(f"{file}: label {a[:, 0].max()} is not one of 0..9")
        records.append(a)
    a = np.concatenate(records)
    has_test = len(files) > 1 and files[-1].name == "test_batch.bin"
    return Dataset("cifar10", {"x": a[:, 1:].reshape(-1, 3, 32, 32).copy(), "y": a[:, 0].astype(np.int64)},
                   info={"test": "test_batch.bin" if has_test else None}, test=len(records[-1]) if has_test else None)


# ---- text -----------------------------------------------------------------------------------------------------------

@loader("text")
def text(path: Path, context: int = 64, order: str = "shuffled", tokens: str | Tokenizer = "char") -> Dataset:
    """A text as windows of `context` tokens: x i32[N, T], and y the same one token later.

    tokens "char" numbers the distinct characters in code order; "byte" takes the UTF-8 bytes, 256 tokens; a tokenizer such as
    bpe("vocab.json", "merges.txt") its own (x i64[N, T]). Windows do not overlap; order "streams" keeps them in sequence, for truncated back-propagation through time.
    """
    if not isinstance(context, int) or isinstance(context, bool) or context < 1:
        raise DatasetError(f"text: context = {context!r}, expected a positive integer")
    if order not in ("shuffled", "streams"):
        raise DatasetError(f"text: unknown order {order!r}", 'expected "shuffled" or "streams"')
    _need_file(path)
    try:
        data = path.read_bytes()
    except OSError as e:
        raise DatasetError(f"cannot read {path}: {e.strerror}") from None
    if tokens == "byte":
        ids, vocabulary = np.frombuffer(data, np.uint8).astype(np.int32), [bytes([k]) for k in range(256)]
    elif tokens == "char":
        try:
            codes = np.frombuffer(data.decode("utf-8").encode("utf-32-le"), np.uint32)
        except UnicodeDecodeError as e:
            raise DatasetError(f"{path} is not UTF-8 text: byte 0x{data[e.start]:02x} at {e.start:,}", 'tokens = "byte" reads any file') from None
        distinct, ids = np.unique(codes, return_inverse=True)
        ids, vocabulary = ids.astype(np.int32), [chr(c) for c in distinct]
    elif hasattr(tokens, "encode") and not isinstance(tokens, str):
        try:
            ids, vocabulary = tokens.encode(data.decode("utf-8")), tokens
        except UnicodeDecodeError as e:
            raise DatasetError(f"{path} is not UTF-8 text: byte 0x{data[e.start]:02x} at {e.start:,}") from None
    else:
        raise DatasetError(f"text: unknown tokens {tokens!r}", 'expected "char", "byte" or a tokenizer such as bpe("vocab.json", "merges.txt")')
    n = (len(ids) - 1) // context
    if n < 1:
        raise DatasetError(f"{path} has {len(ids):,} tokens: too few for a window of {context} and the token after it")
    x, y = (ids[s:s + n * context].reshape(n, context).copy() for s in (0, 1))
    return Dataset(path.stem, {"x": x, "y": y}, order=order, info={"vocabulary": vocabulary})
