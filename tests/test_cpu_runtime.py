"""The thread runtime: every thread runs, barriers hold, errors come back, and it survives fork, exit and Ctrl-C."""
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

pytest.importorskip("llvmlite")

from engram.codegen.cpu import runtime
from engram.codegen.cpu.compile import load
from engram.codegen.cpu.irtext import Fn, Module
from engram.codegen.cpu.target import host_target

ROUNDS = 200


@pytest.fixture(scope="module")
def jobs():
    """count: args[tid] += 1. relay: for each round, every thread writes the round to its slot, waits, and adds up all slots;
    a thread that ran ahead or behind would see another number. fail: reports its own number."""
    m = Module(host_target())
    m.declare("declare void @engram_barrier(ptr)")
    m.declare("declare void @engram_fail(ptr, i64, i64)")
    head = "(ptr %rt, i64 %tid, i64 %n, ptr %args)"
    f = Fn(m, f"void @count{head}")
    slot = f.gep("i64", "%args", "%tid")
    f.store("i64", f.iadd(f.load("i64", slot, 8), "1"), slot, 8)
    f.finish()
    f = Fn(m, f"void @relay{head}")
    mine = f.gep("i64", "%args", f.imul("%tid", "8"))
    with f.loop("0", str(ROUNDS), carried=[("i64", "0")]) as r:
        f.store("i64", r.index, mine, 8)
        f.do("call void @engram_barrier(ptr %rt)")
        with f.loop("0", "%n", carried=[("i64", "0")]) as t:
            t.next = [f.iadd(t.values[0], f.load("i64", f.gep("i64", "%args", f.imul(t.index, "8")), 8))]
        f.do("call void @engram_barrier(ptr %rt)")
        r.next = [f.iadd(r.values[0], t.results[0])]
    f.store("i64", r.results[0], f.gep("i64", mine, "1"), 8)
    f.finish()
    f = Fn(m, f"void @fail{head}")
    f.do(f"call void @engram_fail(ptr %rt, i64 7, i64 {f.iadd('%tid', '40')})")
    f.finish()
    library = load(m.text(), ["count", "relay", "fail"], runtime.symbols())
    return library


@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_every_thread_runs_once_per_launch(jobs, threads):
    r, args = runtime.runtime(threads), np.zeros(threads, np.int64)
    for _ in range(50):
        assert r.launch(jobs.address("count"), args.ctypes.data) == (0, 0)
    assert args.tolist() == [50] * threads


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_barrier(jobs, threads):
    args = np.zeros((threads, 8), np.int64)
    for _ in range(5):
        runtime.runtime(threads).launch(jobs.address("relay"), args.ctypes.data)
        assert args[:, 1].tolist() == [threads * sum(range(ROUNDS))] * threads
        time.sleep(0.002)                        # long enough for the workers to fall asleep


def test_first_error_wins_and_is_cleared(jobs):
    r = runtime.runtime(2)
    code, value = r.launch(jobs.address("fail"), 0)
    assert code == 7 and value in (40, 41)
    args = np.zeros(2, np.int64)
    assert r.launch(jobs.address("count"), args.ctypes.data) == (0, 0)


def test_stopped_team_starts_again(jobs):
    r, args = runtime.runtime(3), np.zeros(3, np.int64)
    r.launch(jobs.address("count"), args.ctypes.data)
    r.stop()
    r.launch(jobs.address("count"), args.ctypes.data)
    assert args.tolist() == [2, 2, 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_child_of_a_fork_has_its_own_team(jobs):
    r, args = runtime.runtime(2), np.zeros(2, np.int64)
    r.launch(jobs.address("count"), args.ctypes.data)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            r.launch(jobs.address("count"), args.ctypes.data)
            status = 0 if args.tolist() == [2, 2] else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    r.launch(jobs.address("count"), args.ctypes.data)
    assert args.tolist() == [2, 2]


def test_launches_from_several_python_threads(jobs):
    import threading
    r, args = runtime.runtime(2), np.zeros(2, np.int64)

    def many():
        for _ in range(200):
            r.launch(jobs.address("count"), args.ctypes.data)
    users = [threading.Thread(target=many) for _ in range(4)]
    for u in users:
        u.start()
    for u in users:
        u.join()
    assert args.tolist() == [800, 800]


def test_exit_right_after_a_launch_is_clean():
    """Workers still spin in machine code then; it must not be unmapped under them."""
    program = textwrap.dedent("""
        from engram.codegen.cpu import runtime
        from engram.codegen.cpu.irtext import Fn, Module
        from engram.codegen.cpu.compile import load
        from engram.codegen.cpu.target import host_target
        m = Module(host_target())
        Fn(m, "void @nothing(ptr %rt, i64 %tid, i64 %n, ptr %args)").finish()
        lib = load(m.text(), ["nothing"])
        for _ in range(20):
            runtime.runtime(4).launch(lib.address("nothing"), 0)
    """)
    for _ in range(3):
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="where the system puts memory")
def test_code_loads_where_free_memory_is_scattered():
    """Holes of few pages, each 3 GB from the next, as beside a GPU's driver or large arrays: a module's code and its constants must not
    be torn apart (displacements have 32 bits)."""
    program = textwrap.dedent("""
        import ctypes
        import numpy as np
        import engram as eg
        libc = ctypes.CDLL(None)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        def reserve(n):
            return libc.mmap(None, n, 0, 0x4022, -1, 0)              # no access, private, anonymous, no swap
        def below(top, n):
            while (p := reserve(n)) > top:                           # holes above are filled first
                pass
            return p
        fn = "fn f(x: f32[n]) -> f32[n] { exp(x) * %d.5 + tanh(x) + erf(x) + sin(x) }"
        x = np.ones(100, np.float32)
        eg.compile(fn % 0).f(x)
        top, holes = reserve(3 << 30), []
        below(top, 1 << 16)
        for pages in range(12):
            holes.append((below(top, (1 + pages % 2) * 4096), (1 + pages % 2) * 4096))
            top = reserve(3 << 30)
        below(top, 4096)
        for hole in holes:
            libc.munmap(*hole)
        for i in range(1, 5):
            eg.compile(fn % i).f(x)
    """)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_fault_of_a_worker_is_told():
    """Signals of a worker's own faults are not blocked: faulthandler, or a debugger, sees them."""
    program = textwrap.dedent("""
        from engram.codegen.cpu import runtime
        from engram.codegen.cpu.irtext import Fn, Module
        from engram.codegen.cpu.compile import load
        from engram.codegen.cpu.target import host_target
        m = Module(host_target())
        f = Fn(m, "void @fault(ptr %rt, i64 %tid, i64 %n, ptr %args)")
        with f.when(f.icmp("ne", "%tid", "0")):
            f.store("i64", "1", f.gep("i64", "%args", "%tid"), 8)       # args: 0
        f.finish()
        lib = load(m.text(), ["fault"])
        runtime.runtime(2).launch(lib.address("fault"), 0)
    """)
    done = subprocess.run([sys.executable, "-X", "faulthandler", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGSEGV and "Segmentation fault" in done.stderr, done


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_interrupt_sets_the_cancel_flag():
    r = runtime.runtime(1)
    with pytest.raises(KeyboardInterrupt), runtime.Interruptible(r):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(200):                             # another thread may get the signal
            time.sleep(0.01)
            flag = ctypes.c_int32.from_address(r.address + runtime.ir.RT_CANCEL).value
        raise AssertionError(f"not interrupted, flag {flag}")


def test_memory_of_large_results_is_used_again():
    """Once nobody holds an earlier result: never before."""
    import engram as eg
    p = eg.compile("fn f(x: f32[n]) -> f32[n] { x + 1 }")
    x = np.arange(1 << 19, dtype=np.float32)
    first = p.f(x)
    part = first[3:5]
    second = p.f(x * 2)
    assert first.ctypes.data != second.ctypes.data and first[7] == 8 and second[7] == 15
    del first
    third = p.f(x * 3)
    assert part.tolist() == [4, 5] and second[7] == 15 and third[7] == 22
    where = third.ctypes.data
    del third
    assert p.f(x).ctypes.data == where


@pytest.mark.skipif(sys.platform != "linux", reason="calls into libc by signatures as on Linux")
def test_interrupts_when_the_handler_before_takes_itself_away():
    """As LLVM's does, which PoCL brings: on a signal it puts back what was there before it, and raises the signal again."""
    program = textwrap.dedent("""
        import ctypes, os, time
        from engram.codegen.cpu import runtime
        libc = ctypes.CDLL(None)
        libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
        seen = []
        def once(sig):
            seen.append(sig)
            assert len(seen) < 2
            libc.signal(sig, before)
            libc["raise"](sig)
        handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(once)
        before = libc.signal(2, ctypes.cast(handler, ctypes.c_void_p))
        for _ in range(3):
            try:
                with runtime.Interruptible(runtime.runtime(1)):
                    os.kill(os.getpid(), 2)
                    time.sleep(1)
                raise SystemExit("not interrupted")
            except KeyboardInterrupt:
                pass
    """)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_who_waits_on_the_openers_processor_moves_off_it():
    lib, addresses = runtime._library()
    apart = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(addresses["engram_apart"])
    getcpu = ctypes.CDLL(None).sched_getcpu
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one processor")
    block = runtime.Memory(runtime.ir.RT_BYTES)
    opener = ctypes.c_int32.from_address(block.address + runtime.ir.RT_OPENER)
    can = ctypes.c_int32.from_address(block.address + runtime.ir.RT_APART)
    cpu = min(allowed)

    def ends(where: set[int]) -> int:
        """The processor after a wait that a thread on `cpu` has ended, for a thread that was on `cpu` itself and may use `where`."""
        os.sched_setaffinity(0, {cpu})
        os.sched_setaffinity(0, where)
        opener.value = getcpu()                      # the system itself may just have moved us
        apart(block.address)
        return getcpu() - opener.value
    try:
        can.value = 1
        moved = [ends(allowed) for _ in range(20)]
        assert moved.count(0) <= 5                   # on a busy system it may move us back at once, but not as a rule
        assert os.sched_getaffinity(0) == allowed    # every processor is allowed again
        assert not ends({cpu}) and os.sched_getaffinity(0) == {cpu}
        opener.value = -1
        apart(block.address)
        can.value = 0                                # more threads than processors
        stays = [ends(allowed) for _ in range(20)]
        assert stays.count(0) >= 15
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_threads_keep_apart_only_where_each_can_have_a_processor():
    n = len(os.sched_getaffinity(0))
    for threads, apart in ((n, 1), (n + 1, 0)):
        assert ctypes.c_int32.from_address(runtime.Runtime(threads).address + runtime.ir.RT_APART).value == apart
