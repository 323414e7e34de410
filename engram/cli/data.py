"""`engram data`: the standard files of a data set, downloaded on demand and verified."""
from __future__ import annotations

from pathlib import Path

from . import OK
from .errors import UserError, wrong


def data_command(args) -> int:
    """Download into a folder, or list what is known."""
    from ..compiler.diagnostics import did_you_mean
    from ..download import SETS, DownloadError, fetch
    if args.name is None:
        width = max(map(len, SETS))
        print("\n".join(f"{n.ljust(width)}  {s.about}\n{'':{width}}  {s.url}" for n, s in SETS.items()))
        return OK
    name = args.name.replace("-", "_")
    if name not in SETS:
        near = did_you_mean(name, SETS)
        raise UserError(f"there is no data set {args.name!r} to download: " + (f"did you mean {near!r}?" if near else f"known: {', '.join(SETS)}"))
    if args.to is None:
        raise UserError(f"where to? `engram data {name} --to DIR`")
    folder = Path(args.to)
    try:
        fetch(name, folder, args.url, args.force, say=lambda text: print(text, flush=True))
    except DownloadError as e:
        return wrong(str(e))
    print(f"{name} is in {folder}: engram run FILE --set data={folder}")
    return OK
