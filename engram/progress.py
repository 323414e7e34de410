"""What a person sees while a network trains: a live bar in a terminal, a line per epoch elsewhere. Computes nothing."""
from __future__ import annotations

import sys
from typing import Any, TextIO

MOST_LAYERS = 6                            # layers whose own accuracy is shown one by one


class Listener:
    """Hears what happens in a training run; this one says nothing. `live`: wants to hear of single batches."""

    live = False

    def begin(self, epochs: int, steps: int, title: str | None = None) -> None: ...
    def epoch_begin(self, epoch: int, steps: int) -> None: ...
    def batch(self, done: int, loss: float | None, rate: float) -> None: ...
    def epoch_end(self, row: dict[str, Any], rate: float) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def close(self) -> None: ...


class Lines(Listener):
    """A line per epoch, thinned out when there are many."""

    def __init__(self, out: TextIO | None = None, err: TextIO | None = None, most: int = 40):
        self.out, self.err, self.most = out or sys.stdout, err or sys.stderr, most

    def begin(self, epochs, steps, title=None):
        self.epochs, self.every, self.epoch = epochs, max(1, -(-epochs // self.most)), 0
        if title:
            self._print(f"phase {title}")

    def epoch_begin(self, epoch, steps):
        self.epoch = epoch

    def epoch_end(self, row, rate):
        if self.epoch % self.every == 0 or self.epoch in (1, self.epochs):
            self._print(epoch_line(self.epoch, self.epochs, row, rate))

    def note(self, text):
        self._print(text)

    def warn(self, text):
        print(f"warning: {text}", file=self.err, flush=True)

    def _print(self, text: str) -> None:
        print(text, file=self.out, flush=True)


class Bars(Lines):
    """The same lines, and below them a bar for the epoch that runs."""

    live = True

    def __init__(self):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
        super().__init__()
        self.console = Console(highlight=False)
        self.bar = Progress(TextColumn("{task.description}"), BarColumn(bar_width=24), TextColumn("{task.completed}/{task.total}"),
                            TextColumn("{task.fields[loss]}"), TimeRemainingColumn(), console=self.console, transient=True,
                            redirect_stdout=False, redirect_stderr=False)
        self.task = None

    def begin(self, epochs, steps, title=None):
        super().begin(epochs, steps, title)
        if self.task is None:
            self.bar.start()
            self.task = self.bar.add_task("", total=steps, loss="")

    def epoch_begin(self, epoch, steps):
        super().epoch_begin(epoch, steps)
        self.bar.reset(self.task, total=steps, description=f"epoch {epoch}/{self.epochs}", loss="")

    def batch(self, done, loss, rate):
        self.bar.update(self.task, completed=done, loss=("" if loss is None else f"loss {loss:.4f}  ") + f"{rate:,.0f} samples/s")

    def close(self):
        if self.task is not None:
            self.bar.stop()
            self.task = None

    def warn(self, text):
        self.console.print(f"[yellow]warning:[/yellow] {text}", markup=True)

    def _print(self, text):
        self.console.print(text, markup=False, soft_wrap=True)


def epoch_line(epoch: int, epochs: int, row: dict[str, Any], rate: float) -> str:
    """`epoch  3/20  loss 0.2143  accuracy 0.9415  0.05 s  28,740 samples/s`"""
    width = len(str(epochs))
    parts = [f"epoch {epoch:>{width}}/{epochs}", *numbers({k: v for k, v in row.items() if isinstance(v, float) and k != "seconds"})]
    return "  ".join([*parts, f"{row['seconds']:.2f} s", f"{rate:,.0f} samples/s"])


def counted(n: int, noun: str) -> str:
    """`1 sample`, `1,438 samples`"""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def numbers(row: dict[str, float]) -> list[str]:
    """`accuracy 0.9415` for each; the accuracies of many layers' own readouts as a range."""
    layers = [k for k in row if k.endswith(".accuracy")]
    shown = [k for k in row if len(layers) <= MOST_LAYERS or k not in layers]
    parts = [f"{k} {row[k]:.4f}" if abs(row[k]) >= 1e-3 or row[k] == 0 else f"{k} {row[k]:.3e}" for k in shown]
    if len(shown) < len(row):
        parts.append(f"{len(layers)} layers {min(row[k] for k in layers):.4f} .. {max(row[k] for k in layers):.4f}")
    return parts


def listener_for(out: TextIO | None = None, quiet: bool = False) -> Listener:
    """Bars on a terminal, lines elsewhere."""
    if quiet:
        return Listener()
    out = out or sys.stdout
    return Bars() if out.isatty() and out is sys.stdout else Lines(out)
