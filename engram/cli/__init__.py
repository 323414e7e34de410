"""The command line: `engram run FILE`, `check`, `fmt`, `ir`, `opt`, `diff`, `data`, `bench`.

This file parses arguments and turns exceptions into exit statuses: 0 fine; 1 the user's program or input is wrong; 2 usage; 70 a
bug in Engram (one line, and the path of a reproducer); 130 interrupted. The commands' code is imported when one of them runs.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

OK, WRONG, USAGE, BUG, INTERRUPTED = 0, 1, 2, 70, 130
BACKENDS = ("interp", "cpu", "opencl")
MAX_THREADS = 1024


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    _open_streams()
    args = parser().parse_args(argv)                         # usage errors exit with 2 here
    try:
        status = _command(args)
        sys.stdout.flush()                                   # what cannot be written is an error of this command, not of Python's end
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:                                  # `engram ir ... | head`
        _mute()
        return OK
    except SystemExit:
        raise
    except BaseException as problem:
        from .errors import report
        return report(problem, argv, args)


def _open_streams() -> None:
    """Streams that the caller has closed (`engram run F >&-`) swallow what is written."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))


def _mute() -> None:
    """What is still to be written to standard output goes nowhere: else Python would fail again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command(args: argparse.Namespace) -> int:
    from importlib import import_module
    module = {"fmt": "check", "opt": "ir", "diff": "diff"}.get(args.command, args.command)
    return getattr(import_module(f".{module}", __package__), f"{args.command}_command")(args)


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    from .. import __version__
    p = argparse.ArgumentParser(prog="engram", description="A compiler for neural networks and for the ways they learn.",
                                epilog="`engram COMMAND --help` tells more. Exit status: 0 fine, 1 the program or its input is wrong, "
                                       "2 usage, 70 a bug in Engram.")
    p.add_argument("--version", action="version", version=f"engram {__version__}")
    _debugging(p)
    commands = p.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, help: str, **kw) -> argparse.ArgumentParser:
        c = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".", **kw)
        _debugging(c)
        return c

    c = command("run", "train the network of a program's train block, or carry out a run block")
    c.add_argument("file", metavar="FILE", help="a .nn program")
    c.add_argument("block", metavar="NAME", nargs="?", help="the train or run block (default: the first)")
    _machine(c)
    c.add_argument("--seed", type=int, metavar="S", help="the seed of initial weights, split and shuffling (default: the program's, else 0)")
    _settings(c)
    c.add_argument("--weights", type=_path, metavar="F", help="start from these weights (safetensors, or llama2.c's .bin)")
    _quantize(c)
    c.add_argument("--out", type=_path, metavar="DIR", help="where metrics.json, weights.safetensors and curve.png go (default: out/NAME)")
    c.add_argument("--plot", action="store_true", help="also draw the weights (weights.png) and where readouts are wrong (errors.png); needs matplotlib")
    c.add_argument("--quiet", "-q", action="store_true", help="print the result only")
    c.add_argument("--profile", action="store_true", help="the time of every kernel, with its line, FLOP/s, bytes/s and what bounds it (all of it: profile.json)")

    c = command("check", "check programs without running them: names, types, shapes, locality")
    c.add_argument("files", metavar="FILE", nargs="+")
    c.add_argument("--json", action="store_true", help="diagnostics as JSON on standard output")
    c.add_argument("--locality", action="store_true", help="a table of what each learning rule reads, and whether it is local")
    _settings(c)

    c = command("fmt", "format programs in place")
    c.add_argument("files", metavar="FILE", nargs="+", help="`-` reads standard input and writes standard output")
    c.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file is not formatted")

    c = command("ir", "print what a program becomes, at any stage")
    c.add_argument("file", metavar="FILE")
    c.add_argument("--stage", default=None, metavar="S", help="ast, nn, plasticity (each update with what it reads), tensor (default), fused, loop, llvm, opencl, or a pass's name")
    c.add_argument("--after", metavar="PASS", help="stop after this pass")
    c.add_argument("--fn", metavar="F", help="a function, layer call or train block (default: the first train block, else the first function)")
    c.add_argument("--dims", metavar="B=32,T=8", default="", help="values of named dimensions (default: 8)")
    c.add_argument("--diff", action="store_true", help="with --after: what that pass changed, as a diff; alone: what each pass changed")
    _quantize(c)
    c.add_argument("--no-locs", action="store_true", help="without source locations")
    c.add_argument("--full", action="store_true", help="print large constants in full, so that the text can be read back")
    _settings(c)

    c = command("opt", "run passes over a file of IR and print the result")
    c.add_argument("file", metavar="FILE", nargs="?", help="textual IR; `-` for standard input")
    c.add_argument("-p", "--passes", required=True, metavar="P,...", help="passes or pipelines by name, in order; `list` prints them")

    c = command("diff", "run a program's functions on every backend and compare the results")
    c.add_argument("file", metavar="FILE", help="a .nn program, or textual IR (.ir)")
    c.add_argument("--fn", metavar="F", help="only this function or train block")
    c.add_argument("--dims", metavar="B=32,T=8", default="", help="values of named dimensions (default: 3)")
    c.add_argument("--seed", type=int, default=0, metavar="S", help="of the random arguments")
    c.add_argument("--backends", default=",".join(BACKENDS), metavar="A,B", help="the first one is the reference (default: %(default)s)")
    c.add_argument("--threads", type=_threads, metavar="N", help="cpu threads")
    _settings(c)

    c = command("data", "download the standard files of a data set into a folder, and verify them")
    c.add_argument("name", metavar="NAME", nargs="?", help="mnist, fashion_mnist or cifar10 (default: list them)")
    c.add_argument("--to", metavar="DIR", help="the folder; files that are there already are verified and kept")
    c.add_argument("--from", metavar="URL", dest="url", help="another mirror: the address of the folder that holds the files")
    c.add_argument("--force", action="store_true", help="replace files that are not the standard ones")

    c = command("bench", "time the headline workloads on this machine, beside other libraries")
    c.add_argument("workload", nargs="*", metavar="NAME", help="only these workloads or groups (default: all)")
    c.add_argument("--list", action="store_true", help="print the workloads, and what each has to reach")
    c.add_argument("--vs", default="", metavar="PEER,...", help="peers to time in turns with Engram: torch, jax (results are compared first)")
    _machine(c)
    c.add_argument("--json", action="store_true", help="results as JSON on standard output")
    c.add_argument("--profile", action="store_true", help="instead of the times: every kernel's, with its line, FLOP/s, bytes/s and what bounds it (--out: as JSON)")
    c.add_argument("--scaling", action="store_true", help="how cost grows with sizes, sequence length, batch and layers (SCALING.md); names choose curves")
    c.add_argument("--out", type=_path, metavar="FILE", help="write the table as Markdown (default: benchmarks/RESULTS.md of a checkout, "
                                                  "when all workloads were timed against a peer)")
    return p


def _machine(p: argparse.ArgumentParser) -> None:
    p.add_argument("--backend", choices=BACKENDS, default="cpu", help="where to run (default: %(default)s)")
    p.add_argument("--threads", type=_threads, metavar="N", help="cpu threads (default: all cores)")


def _quantize(p: argparse.ArgumentParser) -> None:
    p.add_argument("--quantize", type=_weight, metavar="W", help="make the parameters that products use ternary, int4, int8 or pow2(n)")


def _weight(text: str) -> str:
    from ..cheap import checked
    try:
        return checked(text)
    except ValueError as e:
        raise argparse.ArgumentTypeError(str(e).removeprefix("quantize: ")) from None


def _settings(p: argparse.ArgumentParser) -> None:
    p.add_argument("--set", action="append", default=[], metavar="key=value", dest="set",
                   help="override a setting of the train block: epochs=1, limit=64, data=DIR ...")


def _debugging(p: argparse.ArgumentParser) -> None:
    g = p.add_argument_group("looking inside the compiler")
    missing = argparse.SUPPRESS                              # given before or after the command: neither default may win
    g.add_argument("--print-ir-after", metavar="PASS,...", default=missing, help="print the IR after these passes (`all`: each)")
    g.add_argument("--print-ir-diff", action="store_true", default=missing, help="print what each pass changes")
    g.add_argument("--check-passes", action="store_true", default=missing, help="interpret before and after each pass; name the first that changes a result")
    g.add_argument("--time-passes", action="store_true", default=missing, help="print the time each pass took")


def _threads(text: str) -> int:
    n = _positive(text)
    if n > MAX_THREADS:
        raise argparse.ArgumentTypeError(f"more than {MAX_THREADS} threads, got {n}")
    return n


def _path(text: str) -> str:
    if not text:                                             # a variable of the shell that is not set
        raise argparse.ArgumentTypeError("expected a path, got an empty one")
    return text


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)
