"""`engram data`: downloads from a local server, whole, cut off, refused, wrong; nothing here needs a network."""
from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from engram.cli import main
from engram.datasets import dataset
from engram.download import SETS, Remote, Source, matches
from test_data import SHARED, idx


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `files`; `cut` sends so many bytes less than promised, `ranges` says whether it continues."""

    files: dict[str, bytes] = {}
    cut, ranges, seen = 0, True, []

    def do_GET(self):
        name = self.path.lstrip("/")
        Server.seen.append((name, self.headers.get("Range")))
        if name not in Server.files:
            self.send_error(404)
            return
        data, start = Server.files[name], 0
        wanted = self.headers.get("Range")
        if wanted and Server.ranges:
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            if start >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        body = data[start:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:len(body) - Server.cut] if Server.cut else body)

    def log_message(self, *_):
        pass


def gz(data: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as f:
        f.write(data)
    return out.getvalue()


@pytest.fixture
def mirror(monkeypatch):
    rng = np.random.default_rng(0)
    files, remotes = {}, []
    for which, n in (("train", 600), ("t10k", 100)):
        for kind, array in (("images-idx3", rng.integers(0, 256, (n, 28, 28)).astype(np.uint8)), ("labels-idx1", rng.integers(0, 10, n).astype(np.uint8))):
            name, plain = f"{which}-{kind}-ubyte.gz", idx(array)
            files[name] = gz(plain)
            remotes.append(Remote(name, hashlib.sha256(files[name]).hexdigest(), hashlib.sha256(plain).hexdigest()))
    monkeypatch.setitem(SETS, "mnist", Source("http://127.0.0.1:9/", tuple(remotes), "small"))
    Server.files, Server.cut, Server.ranges, Server.seen = files, 0, True, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def data(folder, url, *more, capsys=None):
    status = main(["data", "mnist", "--to", str(folder), "--from", url, *more])
    return (status, capsys.readouterr()) if capsys else status


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_all_files_come_and_are_a_data_set(mirror, tmp_path, capsys):
    status, said = data(tmp_path / "d", mirror, capsys=capsys)
    assert status == 0 and said.out.count("checksum right") == 4 and "--set data=" in said.out and not said.err
    assert names(tmp_path / "d") == sorted(Server.files)
    d = dataset("mnist", tmp_path / "d")
    assert d.n == 700 and d.test == 100 and d.info["test"] == "t10k"


def test_files_that_are_there_are_verified_and_kept(mirror, tmp_path, capsys):
    assert data(tmp_path, mirror) == 0
    labels = tmp_path / "t10k-labels-idx1-ubyte.gz"
    plain = gzip.decompress(labels.read_bytes())
    labels.write_bytes(gzip.compress(plain, 1, mtime=7))                        # another compression of the same content
    images = tmp_path / "t10k-images-idx3-ubyte.gz"
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(gzip.decompress(images.read_bytes()))
    images.unlink()                                                             # unpacked is as good
    Server.seen.clear()
    status, said = data(tmp_path, mirror, capsys=capsys)
    assert status == 0 and not Server.seen and said.out.count("there already, checksum right") == 4


def test_a_file_that_is_another_is_not_overwritten(mirror, tmp_path, capsys):
    mine = tmp_path / "train-labels-idx1-ubyte.gz"
    mine.write_bytes(b"mine")
    status, said = data(tmp_path, mirror, capsys=capsys)
    assert status == 1 and "is there, but it is not the standard file" in said.err and "--force" in said.err and mine.read_bytes() == b"mine"
    assert data(tmp_path, mirror, "--force") == 0
    assert mine.read_bytes() == Server.files[mine.name]


def test_a_wrong_checksum_leaves_nothing(mirror, tmp_path, capsys):
    name = "train-images-idx3-ubyte.gz"
    Server.files[name] = Server.files[name][:-1] + b"!"
    status, said = data(tmp_path, mirror, capsys=capsys)
    assert status == 1 and "wrong checksum" in said.err and name in said.err and names(tmp_path) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_was_cut_off_goes_on(mirror, tmp_path, capsys, ranges):
    Server.cut, Server.ranges = 1000, ranges
    status, said = data(tmp_path, mirror, capsys=capsys)
    assert status == 1 and "the connection ended 1,000 bytes too early" in said.err and "continues from there" in said.err
    first = "train-images-idx3-ubyte.gz"
    assert names(tmp_path) == [first + ".part"]
    have = (tmp_path / (first + ".part")).stat().st_size
    Server.cut = 0
    Server.seen.clear()
    assert data(tmp_path, mirror) == 0
    assert Server.seen[0] == (first, f"bytes={have}-") and (tmp_path / first).read_bytes() == Server.files[first]


def test_a_part_that_is_whole_or_wrong(mirror, tmp_path, capsys):
    first = "train-images-idx3-ubyte.gz"
    (tmp_path / (first + ".part")).write_bytes(Server.files[first])             # whole, but killed before it got its name
    assert data(tmp_path, mirror) == 0
    (tmp_path / first).rename(tmp_path / (first + ".part"))
    with open(tmp_path / (first + ".part"), "ab") as f:
        f.write(b"too much")
    status, said = data(tmp_path, mirror, capsys=capsys)
    assert status == 1 and "wrong checksum" in said.err and first + ".part" not in names(tmp_path)
    assert data(tmp_path, mirror) == 0


def test_a_file_that_is_not_there(mirror, tmp_path, capsys):
    status, said = data(tmp_path, mirror + "/other", capsys=capsys)
    assert status == 1 and "the server answers 404" in said.err and "--from URL" in said.err and names(tmp_path) == []


def test_no_network(mirror, tmp_path, capsys):
    assert main(["data", "mnist", "--to", str(tmp_path)]) == 1                  # the discard port: nobody listens
    err = capsys.readouterr().err
    assert "cannot be reached" in err and "is there a network?" in err and "Traceback" not in err
    assert main(["data", "mnist", "--to", str(tmp_path), "--from", "http://no.such.host.invalid/"]) == 1
    assert "cannot be reached" in capsys.readouterr().err


def test_an_archive_is_unpacked(mirror, tmp_path, capsys, monkeypatch):
    members = {f"{n}.bin": 2 * 3073 for n in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch")}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as t:
        for k, name in enumerate([*members, "../outside.bin"]):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = 2 * 3073
            t.addfile(info, io.BytesIO(bytes([k % 10]) + bytes(3072) + bytes([1]) + bytes(3072)))
    Server.files["c.tar.gz"] = packed.getvalue()
    remote = Remote("c.tar.gz", hashlib.sha256(packed.getvalue()).hexdigest())
    monkeypatch.setitem(SETS, "cifar10", Source(mirror + "/", (remote,), "small", members))
    folder = tmp_path / "c"
    assert main(["data", "cifar10", "--to", str(folder)]) == 0
    assert names(folder) == sorted(members) and names(tmp_path) == ["c"]
    d = dataset("cifar10", folder)
    assert d.n == 12 and d.test == 2 and list(d.fields["y"][:4]) == [0, 1, 1, 1]
    Server.seen.clear()
    assert main(["data", "cifar10", "--to", str(folder)]) == 0 and not Server.seen


def test_what_may_be_asked_for(mirror, tmp_path, capsys):
    assert main(["data"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in SETS)
    for args, message in ((["data", "mnst", "--to", "x"], "did you mean 'mnist'"), (["data", "mnist"], "where to?"),
                          (["data", "mnist", "--to", str(tmp_path), "--from", "file:///etc"], "begins with http")):
        assert main(args) == 1
        assert message in capsys.readouterr().err
    (tmp_path / "f").write_text("")
    assert main(["data", "mnist", "--to", str(tmp_path / "f"), "--from", mirror]) == 1
    assert "File exists" in capsys.readouterr().err


def test_the_standard_checksums():
    """Of the files that are here."""
    if not (SHARED / "mnist").is_dir():
        pytest.skip("no MNIST here")
    for file in SETS["mnist"].files[:2]:
        assert matches(SHARED / "mnist" / file.name, file)


def test_a_program_without_holdout_holds_out_the_test_files(mirror, tmp_path, capsys):
    """The command is the same with the real test files and without: what is held out is said."""
    (tmp_path / "p.nn").write_text("""import "std/nn.nn"
train t { model = Linear(784, 10); data = dataset("mnist", "d"); batch = 50; epochs = 1
  let p = model(flatten(f32(x), 1) / 255)
  minimize cross_entropy(p, y) using sgd(0.1)
  measure accuracy(p, y) }""")
    assert data(tmp_path / "d", mirror) == 0
    run = ["run", str(tmp_path / "p.nn"), "--out", str(tmp_path / "o")]
    assert main(run) == 0
    assert "600 samples to learn from, 100 held out" in capsys.readouterr().out
    for f in (tmp_path / "d").glob("t10k*"):
        f.unlink()
    assert main(run) == 0
    out = capsys.readouterr().out
    assert "500 samples to learn from, 100 held out" in out and "the last 100 training samples stand in for the test set" in out
    assert main([*run, "--set", "holdout=50", "--set", f"data={tmp_path / 'd'}"]) == 0
    assert "550 samples to learn from, 50 held out" in capsys.readouterr().out
