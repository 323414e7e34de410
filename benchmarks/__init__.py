"""Benchmarks: what `engram bench` times, and how. Installed as `engram.benchmarks`, so that a wheel can measure, too.

    workloads.py   the table: each piece of work with its sizes, FLOPs, bytes, tolerance and the ratios it has to reach
    models.py      parameters, data and FLOPs of each network, from its sizes: the same for every side
    ours.py        Engram's side, which runs the `.nn` programs of this folder; peers_torch.py and peers_jax.py the others
    worker.py      one process per side, stopped while another one is timed
    machine.py     the limits of this machine: FMA peak and memory bandwidth, measured
    compare.py     results compared, then time taken in turns; tables.py prints, writes RESULTS.md and JSON
    scaling.py     how cost grows with size, batch, sequence length and depth

PyTorch and JAX are peers here and never dependencies: a side whose package is absent says so in its rows.
"""
