"""`engram data NAME --to DIR`: the standard files of a data set, from the web to a folder, verified.

The only place that opens a connection, and only when asked. A file is written beside its name as NAME.part, continued from there by
the next call, and renamed once its checksum holds; a folder never holds a file under its own name that has not been verified.
What the files mean is datasets.py's business.
"""
from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import tarfile
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PIECE = 1 << 16
TIMEOUT = 30.0                             # seconds without a byte
MAX_BYTES = 1 << 30                        # of a file whose size is not known beforehand


class DownloadError(Exception):
    """A file cannot be had, or is not what it should be; the text says what to do."""


@dataclass(frozen=True)
class Remote:
    """A file: its name, SHA-256 as it is served, and of what is inside where it is a .gz (mirrors compress anew)."""

    name: str
    sha256: str
    content: str | None = None


@dataclass(frozen=True)
class Source:
    """A data set's files and where they are; `members`: what an archive's files are once unpacked, name -> bytes."""

    url: str
    files: tuple[Remote, ...]
    about: str
    members: dict[str, int] | None = None


SETS = {
    "mnist": Source("https://ossci-datasets.s3.amazonaws.com/mnist/", (
        Remote("train-images-idx3-ubyte.gz", "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
               "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        Remote("train-labels-idx1-ubyte.gz", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
               "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
        Remote("t10k-images-idx3-ubyte.gz", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
               "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        Remote("t10k-labels-idx1-ubyte.gz", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
               "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ), "70,000 handwritten digits, 28x28 (LeCun, Cortes, Burges; CC BY-SA 3.0), 12 MB"),
    "fashion_mnist": Source("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", (
        Remote("train-images-idx3-ubyte.gz", "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        Remote("train-labels-idx1-ubyte.gz", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        Remote("t10k-images-idx3-ubyte.gz", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        Remote("t10k-labels-idx1-ubyte.gz", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ), "70,000 pieces of clothing in MNIST's format (Zalando; MIT), 31 MB"),
    "cifar10": Source("https://www.cs.toronto.edu/~kriz/", (
        Remote("cifar-10-binary.tar.gz", "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    ), "60,000 colour pictures, 32x32 (Krizhevsky), 170 MB", {f"{n}.bin": 30_730_000 for n in
                                                             (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")}),
}


def fetch(name: str, folder: Path, url: str | None = None, force: bool = False, say: Callable[[str], None] = print) -> list[Path]:
    """Brings the data set's files into the folder and returns their paths. Files that are there and right are left alone; one that is
    there and differs is a DownloadError unless `force`. `url` is another mirror."""
    source = SETS[name]
    base = url or source.url
    if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
        raise DownloadError(f"{base}: expected an address that begins with http:// or https://")
    if not base.endswith("/"):
        base += "/"
    if source.members and all(_has(folder / n, size) for n, size in source.members.items()):
        say(f"{name}: all files are in {folder} already")
        return [folder / n for n in source.members]
    folder.mkdir(parents=True, exist_ok=True)
    out = []
    for file in source.files:
        have = None if force else present(folder, file)
        if have is not None:
            say(f"{have.name}: there already, checksum right")
        else:
            have = _fetch_file(base + file.name, folder, file, say)
        out.append(have)
    return _unpack(out[0], folder, source.members, say) if source.members else out


def present(folder: Path, file: Remote) -> Path | None:
    """The file, or its unpacked form, where it is in the folder already; DownloadError where what is there is something else."""
    plain = folder / file.name.removesuffix(".gz")
    for path in (folder / file.name, plain):
        if not path.is_file():
            continue
        if matches(path, file):
            return path
        raise DownloadError(f"{path} is there, but it is not the standard file (its checksum differs); move it away, "
                            "name another folder, or replace it with --force")
    return None


def matches(path: Path, file: Remote) -> bool:
    """Whether a file is the one that is meant: as it is served, or by what is inside."""
    with open(path, "rb") as f:
        served = hashlib.file_digest(f, "sha256").hexdigest()
    if served in (file.sha256, file.content):
        return True
    if file.content is None or path.suffix != ".gz":
        return False
    inside, n = hashlib.sha256(), 0
    try:
        with gzip.open(path) as f:
            while (piece := f.read(PIECE)) and n <= MAX_BYTES:
                n += len(piece)
                inside.update(piece)
    except (OSError, EOFError, zlib.error):
        return False
    return inside.hexdigest() == file.content


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _fetch_file(url: str, folder: Path, file: Remote, say) -> Path:
    """One file, continued where an earlier call was cut off."""
    path, part = folder / file.name, folder / (file.name + ".part")
    done = part.stat().st_size if part.is_file() else 0
    say(f"{file.name}: {'continuing at ' + _size(done) if done else 'downloading'} from {url}")
    try:
        _receive(url, part, done)
    except (urllib.error.URLError, OSError, http.client.HTTPException) as e:
        raise _explained(e, url, part) from None
    if not matches(part, file):
        part.unlink()
        raise DownloadError(f"{url}: what came has the wrong checksum, so it was thrown away "
                            f"(expected SHA-256 {file.sha256[:16]}...); try again, or name another mirror with --from")
    os.replace(part, path)
    say(f"{file.name}: {_size(path.stat().st_size)}, checksum right")
    return path


def _receive(url: str, part: Path, done: int) -> None:
    """Appends to `part` what is missing; a server that does not continue starts again from nothing."""
    request = urllib.request.Request(url, headers={"User-Agent": "engram", **({"Range": f"bytes={done}-"} if done else {})})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as e:
        if e.code == 416 and done:                           # nothing is missing, or another file is meant: the checksum tells
            return
        raise
    with answer:
        going_on = answer.status == 206 and (answer.headers.get("Content-Range") or "").startswith(f"bytes {done}-")
        expected = answer.headers.get("Content-Length")
        n = 0
        with open(part, "ab" if going_on else "wb") as f:
            while piece := answer.read(PIECE):
                n += len(piece)
                if n > MAX_BYTES:
                    raise OSError(f"more than {_size(MAX_BYTES)}")
                f.write(piece)
    if expected is not None and expected.isdigit() and n < int(expected):
        raise http.client.IncompleteRead(b"", int(expected) - n)


def _explained(e: Exception, url: str, part: Path) -> DownloadError:
    """What went wrong on the way, and what is left of it."""
    if isinstance(e, urllib.error.HTTPError):
        what = f"the server answers {e.code} {e.reason}"
    elif isinstance(e, http.client.IncompleteRead):
        what = f"the connection ended {_size(e.expected or 0)} too early"
    elif isinstance(e, urllib.error.URLError):
        what = f"cannot be reached ({getattr(e.reason, 'strerror', None) or e.reason})"
    elif isinstance(e, TimeoutError):
        what = f"no answer for {TIMEOUT:.0f} s"
    else:
        what = getattr(e, "strerror", None) or str(e) or type(e).__name__
    kept = part.stat().st_size if part.is_file() else 0
    if kept:
        what += f"; {_size(kept)} are kept, and the same command continues from there"
    elif part.is_file():
        part.unlink()
    hint = "" if kept else "; is there a network? --from URL names another mirror"
    return DownloadError(f"{url}: {what}{hint}")


def _unpack(archive: Path, folder: Path, members: dict[str, int], say) -> list[Path]:
    """The wanted files of a verified archive; the archive is not kept."""
    out = []
    with tarfile.open(archive, "r:gz") as t:
        for m in t:
            name = Path(m.name).name
            if not m.isfile() or name not in members:
                continue
            if m.size != members[name]:
                raise DownloadError(f"{archive}: {name} has {m.size:,} bytes, expected {members[name]:,}")
            part = folder / (name + ".part")
            with t.extractfile(m) as f, open(part, "wb") as g:
                while piece := f.read(PIECE):
                    g.write(piece)
            os.replace(part, folder / name)
            out.append(folder / name)
    missing = sorted(set(members) - {p.name for p in out})
    if missing:
        raise DownloadError(f"{archive} has no {', '.join(missing)}")
    archive.unlink()
    say(f"unpacked {', '.join(p.name for p in out)}")
    return out


def _size(n: int) -> str:
    return f"{n:,} bytes" if n < 10_000 else f"{n / 1e6:,.2f} MB"
