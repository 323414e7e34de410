"""The stages a program goes through, in order, and what each is. Which op is legal where is in the op table."""
from __future__ import annotations

from .ir.opdef import LOOP, NN, STAGES, TENSOR  # noqa: F401

# Names for `engram ir --stage`; llvm belongs to the cpu backend, opencl to the opencl backend.
PRINTABLE = {
    "ast": "the syntax tree",
    "nn": "tensor IR as the front end gives it: nn.*, learn.* and autodiff.* ops, functions and layers",
    "tensor": "base tensor ops: learning derived, optimised",
    "fused": "the same, grouped into kernels (tensor.fused)",
    "loop": "loops over buffers, memory planned",
    "llvm": "LLVM IR of the cpu backend",
    "opencl": "OpenCL C of the opencl backend",
}
