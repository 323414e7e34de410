"""Parity with PyTorch: its own sample inputs (op_db), run through Engram and compared, values and gradients.

table.py says which operation of PyTorch is which of ours and how a sample's arguments are written; programs.py turns samples
into `.nn` programs; runner.py compiles, runs and compares them; `python -m parity` (from tests/) prints or writes the report.
PyTorch is a peer for this test only: without it, test_parity.py skips.
"""
