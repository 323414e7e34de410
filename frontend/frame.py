"""The IR function being filled: its builder, the current values of cells, and where its random keys come from.

A frame knows nothing of syntax.  Regions (branches, loop bodies) are entered with `region`, which restores the cells
afterwards and tells which of them changed inside.
"""
from __future__ import annotations

from ..compiler.diagnostics import Span
from ..compiler.ir import Block, Loc, TensorType, Value, i64, u64
from ..compiler.ir.builder import Builder
from .values import Cell, LayerInstance

KEY = TensorType(u64)
INDEX = TensorType(i64)
SITES = 1 << 40                                      # draws are numbered from here: apart from loop indices and users' numbers


class Frame:
    """One IR function in the making.

    `cells`: values of cells written so far; `arg_cells`: the values cells had on entry, made into arguments when first read.
    `plain`: the body of a plain `fn`, where a draw needs a key that is passed; keys for layers called there become an argument
    of the function as anywhere.
    """

    def __init__(self, name: str, *, training: bool = False, plain: bool = False, roots=()):
        self.name = name
        self.block = Block()
        self.b = Builder(self.block)
        self.training = training
        self.cells: dict[Cell, Value] = {}
        self.arg_cells: dict[Cell, Value] = {}
        self.plain = plain
        self.key: Value | None = None                # what implicit keys are folded from
        self.key_is_argument = False
        self.key_steps: list[Value] = []             # indices of the loops around the current point: folded into keys
        self.sites = 0                               # implicit draws so far
        self.effects = 0                             # writes and other effects so far: tells pure statements apart
        self.yields: list | None = None              # what the innermost scan's body has yielded; None outside of scans
        self.expected: TensorType | None = None      # the type that an initialiser's value is wanted in
        self.roots: list[tuple[str, LayerInstance]] = list(roots)
        self._paths: dict[int, str] | None = None
        self.used_keys: dict[Value, Span] = {}       # keys given to a draw or a call, and where
        self.depth = 0                               # regions around the current point

    # ---- cells ----
    def value_of(self, cell: Cell) -> Value | None:
        v = self.cells.get(cell)
        return self.arg_cells.get(cell) if v is None else v

    def take_argument(self, cell: Cell, type: TensorType, name: str) -> Value:
        """The value of a cell on entry, as a new argument of the function."""
        v = self.arg_cells[cell] = Value(type, self.block, name)
        return v

    def write(self, cell: Cell, value: Value) -> None:
        self.cells[cell] = value
        self.effects += 1

    # ---- regions ----
    def region(self, arg_types=(), names=None) -> Region:
        return Region(self, Block(arg_types, names))

    # ---- random keys ----
    def implicit_key(self, span: Span, draw: bool = True) -> Value | None:
        """A fresh key for one draw or call, folded from the function's key, the draw's number and loop indices; None where no
        key is to be had."""
        if self.key is None:
            if self.plain and draw:
                return None
            self.key = Value(KEY, self.block, "key")
            self.key_is_argument = True
        key = self.key
        b = self.b
        for index in self.key_steps:
            key = b.op("random.fold_in", [key, index], loc=Loc(*span)).result
        self.sites += 1
        site = b.constant(SITES + self.sites, INDEX)
        return b.op("random.fold_in", [key, site], loc=Loc(*span)).result

    # ---- paths of layers ----
    def path_of(self, inst: LayerInstance) -> str | None:
        """The path of a layer as seen from this function, for messages and the plasticity pass."""
        if self._paths is None or id(inst) not in self._paths:
            self._paths = {}
            for prefix, root in self.roots:
                for path, i in root.walk(prefix):
                    self._paths.setdefault(id(i), path)
        return self._paths.get(id(inst))


class Region:
    """`with frame.region(types) as r:` fills `r.block`; afterwards `r.changed` maps the cells written inside to their values."""

    def __init__(self, frame: Frame, block: Block):
        self.frame, self.block = frame, block
        self.changed: dict[Cell, Value] = {}

    def __enter__(self) -> Region:
        f = self.frame
        self.outer_block, self.outer_cells = f.b.block, f.cells
        f.b.block, f.cells = self.block, dict(f.cells)
        f.depth += 1
        return self

    def __exit__(self, *exc) -> None:
        f = self.frame
        before = self.outer_cells
        self.changed = {c: v for c, v in f.cells.items() if before.get(c) is not v}
        f.b.block, f.cells = self.outer_block, before
        f.depth -= 1

    def terminate(self, values) -> None:
        """Ends the block (also after the region was left)."""
        outer = self.frame.b.block
        self.frame.b.block = self.block
        self.frame.b.op("scf.yield", list(values))
        self.frame.b.block = outer
