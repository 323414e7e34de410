"""One process per side of a comparison, and the handle by which the parent drives it.

Why processes: PyTorch's OpenMP threads, XLA's and ours each spin for a while when they have nothing to do, and would take the
processors from one another. A side that is not being timed is stopped whole (SIGSTOP), spinning threads and all; where
the system has no such signal the parent waits until they have gone to sleep. A crash costs its own rows only.

The protocol: a JSON object a line each way, over the child's standard input and a copy of its standard output.
"""
from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODULES = {"engram": "ours", "torch": "peers_torch", "jax": "peers_jax"}
PEERS = ("torch", "jax")
CAN_STOP = hasattr(signal, "SIGSTOP")
PAUSE = 0.3                    # seconds, where a side cannot be stopped: OpenMP's threads spin up to 200 ms
PATIENCE = 240.0               # seconds for one answer


class SideFailed(Exception):
    """A side cannot go on; the message says why, in a line."""


def installed(side: str) -> bool:
    """Whether the package that the side needs is here."""
    return side == "engram" or importlib.util.find_spec(side) is not None


class Side:
    """A running worker. Every request continues it and stops it again."""

    def __init__(self, name: str, threads: int, env: dict[str, str] | None = None):
        self.name = name
        self._errors = tempfile.TemporaryFile()
        from .. import __file__ as package
        path = os.pathsep.join(filter(None, [str(Path(package).resolve().parents[1]), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen([sys.executable, "-m", "engram.benchmarks.worker", name, str(threads)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=self._errors, env={**os.environ, "PYTHONPATH": path, **(env or {})})
        self._pending = False

    def begin(self, **request) -> None:
        """Send a request and let the side run."""
        self._signal("SIGCONT")
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise SideFailed(self._why()) from None
        self._pending = True

    def end(self, patience: float = PATIENCE) -> dict:
        """The answer; the side is stopped when it has come."""
        import select
        ready, _, _ = select.select([self._process.stdout], [], [], patience)
        if not ready:
            self.close()
            raise SideFailed(f"{self.name} did not answer within {patience:.0f} s")
        line = self._process.stdout.readline()
        if not line:
            raise SideFailed(self._why())
        self._pending = False
        self._signal("SIGSTOP")
        answer = json.loads(line)
        if "error" in answer:
            raise SideFailed(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, **request) -> dict:
        self.begin(**request)
        return self.end()

    def _signal(self, name: str) -> None:
        if CAN_STOP:
            try:
                self._process.send_signal(getattr(signal, name))
            except ProcessLookupError:
                pass
        elif name == "SIGSTOP":
            time.sleep(PAUSE)

    def _why(self) -> str:
        code = self._process.wait(10)
        self._errors.seek(0)
        lines = [x for x in self._errors.read().decode(errors="replace").splitlines() if x.strip()]
        return f"{self.name} ended with status {code}" + (f": {lines[-1].strip()[:200]}" if lines else "")

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            self._process.kill()                             # takes stopped ones, too
        self._process.wait()
        for f in (self._process.stdin, self._process.stdout, self._errors):
            try:
                f.close()
            except OSError:
                pass


def at_hand(size: int) -> None:
    """Has the system touch `size` bytes of memory, as it would on a machine of its own: a virtual one's host may have taken back what was
    free, and takes two seconds a GB to return it (free page reporting), which is no side's doing."""
    import mmap
    try:
        size = min(size, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4)
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if size else None
    except (AttributeError, OSError, ValueError):            # not there, or not to be had: the clock tells
        return
    if memory is not None:
        with memory:
            if hasattr(mmap, "MADV_HUGEPAGE"):
                memory.madvise(mmap.MADV_HUGEPAGE)
            for at in range(0, size, mmap.PAGESIZE):
                memory[at] = 1


# ---- in the child ---------------------------------------------------------------------------------------------------------

def main(name: str, threads: int) -> None:
    """Answer requests until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)                                            # what libraries print must not be taken for an answer
    try:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    except (AttributeError, OSError):
        pass
    server = Server(name, threads)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(server, request.pop("do"))(**request)
        except Exception as e:                               # the parent's row tells it
            text = " ".join(str(e).split())
            answer = {"error": f"{type(e).__name__}: {text}"[:300]}
            if os.environ.get("ENGRAM_DEBUG"):
                import traceback
                traceback.print_exc()
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Server:
    """What a worker can be asked to do."""

    def __init__(self, name: str, threads: int):
        self.name, self.threads = name, threads
        self.module = importlib.import_module(f".{MODULES[name]}", __package__)
        self.subject = None

    def version(self) -> dict:
        return {"version": self.module.version()}

    def prepare(self, workload: str, size: dict | None = None, backend: str = "cpu") -> dict:
        """Build the subject; `unit`: how many units of work go together. `backend` is Engram's."""
        from .workloads import WORKLOADS
        start = time.perf_counter()
        where = {"backend": backend} if self.name == "engram" else {}
        self.subject = self.module.prepare(WORKLOADS[workload].sized(**size or {}), self.threads, **where)
        return {"seconds": time.perf_counter() - start, "unit": getattr(self.subject, "unit", 1)}

    def results(self, path: str) -> dict:
        """Write what is compared to a file of arrays."""
        import numpy as np
        np.savez(path, **self.subject.results())
        return {}

    def time(self, n: int, warm: int = 0) -> dict:
        """Seconds for n units, after `warm` that do not count."""
        s = self.subject
        if warm:
            s.run(warm)
        if hasattr(s, "timed"):
            return {"seconds": s.timed(n)}
        start = time.perf_counter()
        s.run(n)
        return {"seconds": time.perf_counter() - start}

    def first(self, memory: int = 0) -> dict:
        """Seconds of the first step, and its loss; before the clock starts, `memory` bytes are taken from the system and given back."""
        at_hand(memory)
        seconds, loss = self.subject.first()
        return {"seconds": seconds, "loss": loss}

    def peak_memory(self) -> dict:
        """Bytes of resident memory at most so far, of this process. Not by getrusage where the system tells otherwise: its number is at
        least what the parent had in memory when it started us."""
        try:
            with open("/proc/self/status", encoding="ascii") as f:
                return {"bytes": next(int(line.split()[1]) for line in f if line.startswith("VmHWM:")) * 1024}
        except (OSError, StopIteration):
            pass
        import resource
        return {"bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)}


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
