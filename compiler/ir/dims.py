"""Symbolic dimensions: polynomials over named dims, used only while a generic function is checked.

A dim of a type is an `int` or a `Dim`. Arithmetic that comes out constant gives an `int` again, so concrete code never meets
a `Dim`. Unknown exact quotients (`d/h`) are opaque atoms; `maybe_equal` answers what can still become true.
"""
from __future__ import annotations

import math


class Dim:
    """A polynomial with integer coefficients: {monomial (sorted tuple of atom names): coefficient}. Immutable, hashable."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[tuple[str, ...], int]):
        self.terms = terms

    @staticmethod
    def symbol(name: str) -> Dim:
        """The dim called `name`; rigid: equal to itself only."""
        return Dim({(name,): 1})

    @staticmethod
    def _terms(x: int | Dim) -> dict[tuple[str, ...], int]:
        return x.terms if isinstance(x, Dim) else ({(): int(x)} if x else {})

    @staticmethod
    def _make(terms: dict[tuple[str, ...], int]) -> int | Dim:
        terms = {m: c for m, c in terms.items() if c}
        if not terms:
            return 0
        if len(terms) == 1 and () in terms:
            return terms[()]
        return Dim(terms)

    def __add__(self, other):
        if not isinstance(other, int | Dim):
            return NotImplemented
        out = dict(self.terms)
        for m, c in Dim._terms(other).items():
            out[m] = out.get(m, 0) + c
        return Dim._make(out)

    __radd__ = __add__

    def __neg__(self):
        return Dim._make({m: -c for m, c in self.terms.items()})

    def __sub__(self, other):
        return self + (-other)

    def __rsub__(self, other):
        return (-self) + other

    def __mul__(self, other):
        if not isinstance(other, int | Dim):
            return NotImplemented
        out: dict[tuple[str, ...], int] = {}
        for m1, c1 in self.terms.items():
            for m2, c2 in Dim._terms(other).items():
                m = tuple(sorted(m1 + m2))
                out[m] = out.get(m, 0) + c1 * c2
        return Dim._make(out)

    __rmul__ = __mul__

    def __floordiv__(self, other):
        return divide(self, other)

    def __rfloordiv__(self, other):
        return divide(other, self)

    def __mod__(self, other):
        return 0 if divide_exact(self, other) is not None else Dim.symbol(f"({self})%({other})")

    def __rmod__(self, other):
        return Dim.symbol(f"({other})%({self})")

    def __eq__(self, other):
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self):
        return hash(frozenset(self.terms.items()))

    # An unknown size is taken as large: `dim > 0`, `dim >= k` hold and `dim < k` does not, so checks of generic code go on.
    def __gt__(self, other):
        return True

    def __ge__(self, other):
        return True

    def __lt__(self, other):
        return False

    def __le__(self, other):
        """False only where it is certain: `3*d <= d`. The ops' checks ask this, and what is undecided is checked at specialisation."""
        d = other - self
        return d >= 0 if isinstance(d, int) else any(c > 0 for c in d.terms.values())

    def atoms(self) -> set[str]:
        return {a for m in self.terms for a in m}

    def substitute(self, env: dict[str, int | Dim]) -> int | Dim:
        total: int | Dim = 0
        for m, c in self.terms.items():
            prod: int | Dim = c
            for a in m:
                prod = prod * env.get(a, Dim.symbol(a))
            total = total + prod
        return total

    def __str__(self):
        parts = []
        for m, c in sorted(self.terms.items(), key=lambda t: (not t[0], t[0])):
            body = "*".join(m)
            text = body if c == 1 and m else (str(abs(c)) + ("*" + body if m else "")) if c > 0 else None
            if c < 0:
                text = (body if c == -1 and m else str(-c) + ("*" + body if m else ""))
                parts.append("-" + text)
            else:
                parts.append(("+" if parts else "") + text)
        return "".join(parts)

    __repr__ = __str__


def divide_exact(a: int | Dim, b: int | Dim) -> int | Dim | None:
    """a / b where b divides a as polynomials (b a monomial or constant), else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    if a == b:
        return 1
    tb = Dim._terms(b)
    if len(tb) != 1:
        return None
    (mb, cb), = tb.items()
    out = {}
    for m, c in Dim._terms(a).items():
        rest = list(m)
        for atom in mb:
            if atom not in rest:
                return None
            rest.remove(atom)
        if c % cb:
            return None
        out[tuple(rest)] = c // cb
    return Dim._make(out)


def divide(a: int | Dim, b: int | Dim) -> int | Dim:
    """Floor division; an opaque atom where it can't be decided."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    q = divide_exact(a, b)
    return q if q is not None else Dim.symbol(f"({a})//({b})")


def maybe_equal(a: int | Dim, b: int | Dim) -> bool:
    """Whether a == b is provable, or undecidable because an opaque quotient or remainder is involved."""
    if a == b:
        return True
    return any("/" in s or "%" in s for d in (a, b) if isinstance(d, Dim) for s in d.atoms())


def product(dims) -> int | Dim:
    dims = tuple(dims)                                  # any iterable: it is walked twice
    return math.prod(dims) if all(isinstance(d, int) for d in dims) else _product(dims)


def _product(dims):
    out: int | Dim = 1
    for d in dims:
        out = d * out if isinstance(d, Dim) else out * d
    return out


def is_static(shape) -> bool:
    return all(type(d) is int for d in shape)
