"""LLVM text of the thread runtime: workers, launch, barrier, in one small module that every process loads once.

One runtime block (`RT_*` offsets, each hot word on its own cache line) is shared by the threads of a team. Waiting
threads spin for a few tens of microseconds, yield the processor for some hundreds and then sleep in a futex (where there is none, they go on
yielding). Two threads that the system has put on one processor, the other idle, each work while the other waits: who waits is no load that
would be balanced soon (25 ms for the steps of an MLP, seconds where barriers are microseconds apart). So who opens a barrier notes its
processor, and who finds itself on it after a long wait moves to another one (Linux, where there are processors enough).
No knowledge about kernels: a job is `void fn(ptr runtime, i64 tid, i64 threads, ptr args)`.
"""
from __future__ import annotations

import sys

from .target import CpuTarget

RT_GENERATION = 0       # i32: barriers passed
RT_ARRIVED = 64         # i32: threads waiting at the current one
RT_EPOCH = 128          # i32: jobs launched
RT_SLEEPERS = 192       # i32: threads asleep in a futex
RT_JOB = 256            # ptr fn (null: the worker ends), ptr args
RT_THREADS = 272        # i64
RT_SCRATCH = 280        # ptr, i64 bytes per thread
RT_APART = 296          # i32: no more threads than processors, so each can have its own
RT_ERROR = 320          # i64 code (0: none), i64 value
RT_CANCEL = 384         # i32: set from outside (Ctrl-C); two i32 after it: what thread 0 saw, agreed on by all
RT_CTRL_C = 396         # i32: what a Ctrl-C adds to RT_CANCEL
RT_PROGRESS = 448       # i64: steps done, written by native loops
RT_OPENER = 512         # i32: the processor of the thread that last ended a wait of others
RT_BYTES = 576

CANCELLED = 2           # RT_CANCEL from here on: leave every loop; at 1 a loop of whole steps (loop.for with `progress`) ends after its step

SPINS = 600             # x86: a pause is 40-140 cycles, so about 20 microseconds
YIELDS = 600            # system calls of some 0.3 microseconds: longer than a training step's end in Python, so that its next one finds the threads awake

MASK_BYTES = 1024       # a set of processors, 8192 of them (the kernel's own limit)

_FUTEX = {"x86_64": 202, "aarch64": 98}
_YIELD = {"x86_64": 24, "aarch64": 124}
_SETAFFINITY = {"x86_64": 203, "aarch64": 122}
_GETAFFINITY = {"x86_64": 204, "aarch64": 123}
_WAIT, _WAKE = 128, 129            # FUTEX_WAIT_PRIVATE, FUTEX_WAKE_PRIVATE

EXPORTS = ("engram_worker", "engram_launch", "engram_barrier", "engram_fail", "engram_pointers", "engram_apart", "engram_stop", "engram_sigint",
           "engram_signal_state")


def runtime_text(target: CpuTarget) -> str:
    """The module's text."""
    arch = target.triple.split("-")[0]
    pause, hint = {"x86_64": ("call void @llvm.x86.sse2.pause()", "declare void @llvm.x86.sse2.pause()"),
                   "aarch64": ("call void @llvm.aarch64.hint(i32 1)", "declare void @llvm.aarch64.hint(i32)"),
                   }.get(arch, ("fence seq_cst", ""))
    if sys.platform.startswith("linux") and arch in _FUTEX:
        declare = "declare i64 @syscall(i64, ...)\ndeclare i32 @sched_getcpu()"
        note = f"""  %cpu = call i32 @sched_getcpu()
  %op = getelementptr i8, ptr %rt, i64 {RT_OPENER}
  store atomic i32 %cpu, ptr %op monotonic, align 4"""
        apart = f"""  %fp = getelementptr i8, ptr %rt, i64 {RT_APART}
  %can = load i32, ptr %fp, align 4
  %op = getelementptr i8, ptr %rt, i64 {RT_OPENER}
  %theirs = load atomic i32, ptr %op monotonic, align 4
  %mine = call i32 @sched_getcpu()
  %met = icmp eq i32 %mine, %theirs
  %known = icmp ult i32 %mine, {8 * MASK_BYTES}
  %here = and i1 %met, %known
  %may = icmp ne i32 %can, 0
  %move = and i1 %here, %may
  br i1 %move, label %ask, label %stay
ask:
  %all = alloca [{MASK_BYTES} x i8], align 8
  %got = call i64 (i64, ...) @syscall(i64 {_GETAFFINITY[arch]}, i64 0, i64 {MASK_BYTES}, ptr %all)
  %some = icmp sgt i64 %got, 0
  br i1 %some, label %leave, label %stay
leave:
  %at = lshr i32 %mine, 3
  %byte = getelementptr i8, ptr %all, i32 %at
  %in = and i32 %mine, 7
  %in8 = trunc i32 %in to i8
  %bit = shl i8 1, %in8
  %had = load i8, ptr %byte, align 1
  %not = xor i8 %bit, -1
  %less = and i8 %had, %not
  store i8 %less, ptr %byte, align 1
  %gone = call i64 (i64, ...) @syscall(i64 {_SETAFFINITY[arch]}, i64 0, i64 %got, ptr %all)
  store i8 %had, ptr %byte, align 1
  %back = call i64 (i64, ...) @syscall(i64 {_SETAFFINITY[arch]}, i64 0, i64 %got, ptr %all)
  br label %stay
stay:"""
        number = _FUTEX[arch]
        give_way = f"%y = call i64 (i64, ...) @syscall(i64 {_YIELD[arch]})"
        wait = f"""  %s = getelementptr i8, ptr %rt, i64 {RT_SLEEPERS}
  %o = atomicrmw add ptr %s, i32 1 seq_cst
  %r = call i64 (i64, ...) @syscall(i64 {number}, ptr %word, i64 {_WAIT}, i32 %old, ptr null, ptr null, i32 0)
  %p = atomicrmw sub ptr %s, i32 1 seq_cst"""
        wake = f"""  %s = getelementptr i8, ptr %rt, i64 {RT_SLEEPERS}
  fence seq_cst
  %o = load atomic i32, ptr %s seq_cst, align 4
  %any = icmp ne i32 %o, 0
  br i1 %any, label %wake, label %done
wake:
  %r = call i64 (i64, ...) @syscall(i64 {number}, ptr %word, i64 {_WAKE}, i32 2147483647, ptr null, ptr null, i32 0)
  br label %done
done:"""
    else:
        declare = "declare i32 @sched_yield()"
        give_way = "%y = call i32 @sched_yield()"
        wait, wake, note, apart = "  %r = call i32 @sched_yield()", "", "", ""
    return f"""
{declare}
{hint}

; after a long wait: off the processor of the thread that ended it
define void @engram_apart(ptr %rt) #2 {{
entry:
{apart}
  ret void
}}

; spin, then yield, then sleep, while *word == old
define internal void @wait(ptr %rt, ptr %word, i32 %old) #2 {{
entry:
  br label %spin
spin:
  %i = phi i64 [ 0, %entry ], [ %i1, %again ]
  %v = load atomic i32, ptr %word acquire, align 4
  %same = icmp eq i32 %v, %old
  br i1 %same, label %again, label %done
again:
  {pause}
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, {SPINS}
  br i1 %more, label %spin, label %yield
yield:
  %j = phi i64 [ 0, %again ], [ %j1, %yield.again ]
  {give_way}
  %v1 = load atomic i32, ptr %word acquire, align 4
  %same1 = icmp eq i32 %v1, %old
  br i1 %same1, label %yield.again, label %late
yield.again:
  %j1 = add i64 %j, 1
  %more1 = icmp slt i64 %j1, {YIELDS}
  br i1 %more1, label %yield, label %sleep
sleep:
{wait}
  %v2 = load atomic i32, ptr %word acquire, align 4
  %same2 = icmp eq i32 %v2, %old
  br i1 %same2, label %sleep.again, label %late
sleep.again:
  br label %sleep
late:
  call void @engram_apart(ptr %rt)
  br label %done
done:
  ret void
}}

; this thread is about to end a wait of others
define internal void @note(ptr %rt) #2 {{
entry:
{note}
  ret void
}}

define internal void @wake(ptr %rt, ptr %word) #2 {{
entry:
{wake}
  ret void
}}

define void @engram_barrier(ptr %rt) #2 {{
entry:
  %np = getelementptr i8, ptr %rt, i64 {RT_THREADS}
  %n = load i64, ptr %np, align 8
  %alone = icmp eq i64 %n, 1
  br i1 %alone, label %out, label %team
team:
  %gp = getelementptr i8, ptr %rt, i64 {RT_GENERATION}
  %ap = getelementptr i8, ptr %rt, i64 {RT_ARRIVED}
  %g = load atomic i32, ptr %gp acquire, align 4
  %before = atomicrmw add ptr %ap, i32 1 acq_rel
  %now = add i32 %before, 1
  %n32 = trunc i64 %n to i32
  %last = icmp eq i32 %now, %n32
  br i1 %last, label %open, label %wait
open:
  store atomic i32 0, ptr %ap monotonic, align 4
  call void @note(ptr %rt)
  %g1 = add i32 %g, 1
  store atomic i32 %g1, ptr %gp release, align 4
  call void @wake(ptr %rt, ptr %gp)
  ret void
wait:
  call void @wait(ptr %rt, ptr %gp, i32 %g)
  ret void
out:
  ret void
}}

; the first error of a launch wins
define void @engram_fail(ptr %rt, i64 %code, i64 %value) #2 {{
entry:
  %p = getelementptr i8, ptr %rt, i64 {RT_ERROR}
  %r = cmpxchg ptr %p, i64 0, i64 %code acq_rel monotonic
  %won = extractvalue {{ i64, i1 }} %r, 1
  br i1 %won, label %first, label %done
first:
  %v = getelementptr i8, ptr %rt, i64 {RT_ERROR + 8}
  store i64 %value, ptr %v, align 8
  br label %done
done:
  ret void
}}

; arg: ptr runtime, i64 tid
define ptr @engram_worker(ptr %arg) #2 {{
entry:
  %rt = load ptr, ptr %arg, align 8
  %tp = getelementptr i8, ptr %arg, i64 8
  %tid = load i64, ptr %tp, align 8
  %ep = getelementptr i8, ptr %rt, i64 {RT_EPOCH}
  %jp = getelementptr i8, ptr %rt, i64 {RT_JOB}
  %jap = getelementptr i8, ptr %rt, i64 {RT_JOB + 8}
  %np = getelementptr i8, ptr %rt, i64 {RT_THREADS}
  br label %next
next:
  %epoch = phi i32 [ 0, %entry ], [ %epoch1, %work ]
  call void @wait(ptr %rt, ptr %ep, i32 %epoch)
  %epoch1 = add i32 %epoch, 1
  %fn = load ptr, ptr %jp, align 8
  %end = icmp eq ptr %fn, null
  br i1 %end, label %out, label %work
work:
  %args = load ptr, ptr %jap, align 8
  %n = load i64, ptr %np, align 8
  call void %fn(ptr %rt, i64 %tid, i64 %n, ptr %args)
  call void @engram_barrier(ptr %rt)
  br label %next
out:
  ret ptr null
}}

define internal void @post(ptr %rt, ptr %fn, ptr %args) #2 {{
entry:
  %ep = getelementptr i8, ptr %rt, i64 {RT_EPOCH}
  %jp = getelementptr i8, ptr %rt, i64 {RT_JOB}
  %jap = getelementptr i8, ptr %rt, i64 {RT_JOB + 8}
  store ptr %fn, ptr %jp, align 8
  store ptr %args, ptr %jap, align 8
  call void @note(ptr %rt)
  %e = load i32, ptr %ep, align 4
  %e1 = add i32 %e, 1
  store atomic i32 %e1, ptr %ep release, align 4
  call void @wake(ptr %rt, ptr %ep)
  ret void
}}

; run fn on the team (team != 0) or on this thread alone
define void @engram_launch(ptr %rt, ptr %fn, ptr %args) #2 {{
entry:
  %np = getelementptr i8, ptr %rt, i64 {RT_THREADS}
  %n = load i64, ptr %np, align 8
  %alone = icmp eq i64 %n, 1
  br i1 %alone, label %one, label %many
one:
  call void %fn(ptr %rt, i64 0, i64 1, ptr %args)
  ret void
many:
  call void @post(ptr %rt, ptr %fn, ptr %args)
  call void %fn(ptr %rt, i64 0, i64 %n, ptr %args)
  call void @engram_barrier(ptr %rt)
  ret void
}}

; out[i] = args[table[2 i]] + table[2 i + 1] bytes
define void @engram_pointers(ptr %table, i64 %n, ptr %args, ptr %out) #2 {{
entry:
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %i1, %loop ]
  %which = getelementptr [2 x i64], ptr %table, i64 %i
  %bytes = getelementptr i64, ptr %which, i64 1
  %a = load i64, ptr %which, align 8
  %b = load i64, ptr %bytes, align 8
  %from = getelementptr ptr, ptr %args, i64 %a
  %base = load ptr, ptr %from, align 8
  %p = getelementptr i8, ptr %base, i64 %b
  %to = getelementptr ptr, ptr %out, i64 %i
  store ptr %p, ptr %to, align 8
  %i1 = add i64 %i, 1
  %more = icmp ult i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
  ret void
}}

define void @engram_stop(ptr %rt) #2 {{
entry:
  call void @post(ptr %rt, ptr null, ptr null)
  ret void
}}

; SIGINT while native code runs: note it where the loops look, then do what was to be done anyway
@engram_signal_state = global [2 x ptr] zeroinitializer
define void @engram_sigint(i32 %sig) #2 {{
entry:
  %rt = load volatile ptr, ptr @engram_signal_state, align 8
  %none = icmp eq ptr %rt, null
  br i1 %none, label %chain, label %set
set:
  %cp = getelementptr i8, ptr %rt, i64 {RT_CANCEL}
  %ip = getelementptr i8, ptr %rt, i64 {RT_CTRL_C}
  %by = load i32, ptr %ip, align 4
  %before = atomicrmw add ptr %cp, i32 %by seq_cst
  br label %chain
chain:
  %oldp = getelementptr i8, ptr @engram_signal_state, i64 8
  %old = load volatile ptr, ptr %oldp, align 8
  %bits = ptrtoint ptr %old to i64
  %real = icmp ugt i64 %bits, 1
  br i1 %real, label %call, label %done
call:
  call void %old(i32 %sig)
  br label %done
done:
  ret void
}}
{target.fn_attrs}"""
