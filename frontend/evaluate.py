"""Fills the evaluation tables: importing this module registers every expression and statement."""
from . import calls, control, expressions, indexing, operators, statements  # noqa: F401
