"""python -m parity [NAME ...] [--backend B] [--limit N] [--quiet]: run samples and print what became of them."""
from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from .runner import OPS, run


def main() -> None:
    p = argparse.ArgumentParser(prog="parity")
    p.add_argument("names", nargs="*")
    p.add_argument("--backend", default="cpu")
    p.add_argument("--limit", type=int)
    p.add_argument("--family")
    p.add_argument("--show", type=int, default=3)
    p.add_argument("--report", help="write the table of results as Markdown")
    a = p.parse_args()
    entries = [e for e in OPS if (not a.names or e.name in a.names or e.name.split(".")[-1] in a.names) and (not a.family or e.family == a.family)]
    results = []
    for e in entries:
        start = time.time()
        r = run(e, a.backend, a.limit)
        results.append((e, r))
        share = r.passed / r.expressible if r.expressible else float("nan")
        print(f"{'ok  ' if r.passed == r.expressible else '    '}{r.name:48} {r.samples:5} samples {r.expressible:5} expressible {r.passed:5} passed "
              f"{100 * share:6.1f}% {time.time() - start:6.1f}s", flush=True)
        for reason, n in Counter(why for _, why in r.inexpressible).items():
            print(f"          not expressible x{n}: {reason}")
        seen = Counter()
        for i, source, why in r.failures:
            seen[why[:60]] += 1
            if seen[why[:60]] == 1 and len(seen) <= a.show:
                print(f"        - {i}: {source[:150]}\n            {why[:300]}", flush=True)
    summary(results)
    if a.report:
        from .report import write
        write(a.report, results, a.backend)


def summary(results) -> None:
    for family in dict.fromkeys(e.family for e, _ in results):
        shares = [r.passed / r.expressible for e, r in results if e.family == family and r.expressible]
        n, x, ok = (sum(getattr(r, k) for e, r in results if e.family == family) for k in ("samples", "expressible", "passed"))
        if shares:
            print(f"{family:14} {len(shares):4} ops {n:6} samples {x:6} expressible {ok:6} passed; every op weighing the same "
                  f"{100 * sum(shares) / len(shares):.2f}%; below 95%: {sum(s < 0.95 for s in shares)}")
    shares = [r.passed / r.expressible for _, r in results if r.expressible]
    print(f"all: {100 * sum(shares) / max(1, len(shares)):.2f}% of {len(shares)} ops", file=sys.stdout)


main()
