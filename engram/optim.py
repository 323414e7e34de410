"""Optimisers and learning rules as Python names them: descriptions that become the text of a rule's use in a train block."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def literal(value: Any) -> str:
    """A Python value as the language writes it."""
    if isinstance(value, Verbatim):
        return value.text
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if value is None:
        return "none"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        value = float(value)
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"{value} cannot be written as a literal")
        return repr(value)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
    if isinstance(value, list | tuple):
        inner = ", ".join(literal(v) for v in value)
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    raise TypeError(f"expected a number, text, bool, None or a list of such, got {type(value).__name__}: {value!r}")


class Verbatim:
    """A piece of a program's text: `eg.expr("gelu")`, a function of the program by its name, a schedule of `step` ..."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return f"expr({self.text!r})"


expr = Verbatim


class Rule:
    """One use of a rule of the language with its arguments."""

    def __init__(self, name: str, args: tuple = (), kwargs: Mapping[str, Any] | None = None, given: Verbatim | Mapping[str, Verbatim] | None = None):
        self.name, self.args, self.kwargs, self.given = name, tuple(args), dict(kwargs or {}), given
        if given is not None and not isinstance(given, Verbatim) and not (isinstance(given, Mapping) and all(isinstance(v, Verbatim) for v in given.values())):
            raise TypeError(f'rule {name}: given is eg.expr("...") of `out` and `y`, or one for each signal by its name')

    @property
    def text(self) -> str:
        """As a train block writes it: `adam(lr = 0.003)`."""
        parts = [literal(a) for a in self.args] + [f"{k} = {literal(v)}" for k, v in self.kwargs.items()]
        return f"{self.name}({', '.join(parts)})"

    def __repr__(self) -> str:
        return self.text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def rule(name: str, *args, given: Verbatim | Mapping[str, Verbatim] | None = None, **kwargs) -> Rule:
    """A learning rule of the standard library or of the program, for `Model.compile(learn={"hidden": eg.rule("three_factor", ...)})`.

    given: what is broadcast to it, eg.expr("...") of `x`, `y` and the model's `out`, or {"reward": eg.expr("..."), ...}; else what the
    rule's types ask for: y, as floats, as one-hot rows, or for `error` the difference of the softmax from these.
    """
    return Rule(name, args, kwargs, given)


def _checked(name: str, kwargs: dict[str, Any]) -> Rule:
    """The rule; a number that makes no sense is refused here, where its name is known. Pieces of program text (schedules) pass."""
    for k, v in kwargs.items():
        if isinstance(v, Verbatim) or k == "nesterov" and isinstance(v, bool | np.bool_):
            continue
        number = isinstance(v, int | float | np.integer | np.floating) and not isinstance(v, bool)
        share = k in ("b1", "b2", "alpha", "momentum")
        want = "true or false" if k == "nesterov" else "a number from 0 to below 1" if share else "a number from 0"
        if not number or k == "nesterov":
            raise TypeError(f"{name}: {k} is {v!r}, expected {want}")
        if not 0 <= v < (1 if share else float("inf")):
            raise ValueError(f"{name}: {k} is {v!r}, expected {want}")
    return Rule(name, kwargs=kwargs)


def SGD(lr: float = 0.01, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Rule:
    """Stochastic gradient descent, as torch.optim.SGD without dampening."""
    return _checked("sgd", dict(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay))


def Adam(lr: float = 1e-3, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> Rule:
    """Adam (Kingma & Ba 2015)."""
    return _checked("adam", dict(lr=lr, b1=b1, b2=b2, eps=eps))


def AdamW(lr: float = 1e-3, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.01) -> Rule:
    """Adam with decoupled weight decay."""
    return _checked("adamw", dict(lr=lr, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay))


def RMSprop(lr: float = 0.01, alpha: float = 0.99, eps: float = 1e-8) -> Rule:
    """RMSprop, as torch.optim.RMSprop without momentum."""
    return _checked("rmsprop", dict(lr=lr, alpha=alpha, eps=eps))


def Lion(lr: float = 1e-4, b1: float = 0.9, b2: float = 0.99, weight_decay: float = 0.0) -> Rule:
    """Lion (Chen et al. 2023): sign updates."""
    return _checked("lion", dict(lr=lr, b1=b1, b2=b2, weight_decay=weight_decay))


BY_NAME = {"sgd": SGD, "adam": Adam, "adamw": AdamW, "rmsprop": RMSprop, "lion": Lion}


def optimizer(value: Rule | str) -> Rule:
    """An optimiser from what `Model.compile` was given: a description, or a name for its defaults."""
    if isinstance(value, Rule):
        return value
    if isinstance(value, str):
        fn = BY_NAME.get(value.lower())
        if fn:
            return fn()
        from .compiler.diagnostics import did_you_mean
        near = did_you_mean(value.lower(), BY_NAME)
        raise ValueError(f"unknown optimizer {value!r}: " + (f"did you mean {near!r}?" if near else f"known: {', '.join(BY_NAME)}"))
    raise TypeError(f"expected an optimizer such as eg.Adam(3e-3), got {type(value).__name__}")
