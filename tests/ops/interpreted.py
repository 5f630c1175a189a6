"""Runs the kernels through Triton's interpreter and prints, as JSON, how far each case is from the definition.

A program of its own, since TRITON_INTERPRET must be set before Triton is imported:
``python -m tests.ops.interpreted float16 [slow]``.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

from aff_deploy.ops.torch_op import launch
from tests.ops.kernel_cases import CASES, SLOW_CASES, Case, arguments_of, error_of, inputs_of

torch.set_num_threads(1)


def error(case: Case, dtype: str) -> float:
    """The largest difference from the definition, in its largest value."""
    inputs = inputs_of(case, dtype)
    x = inputs["x"]
    out = launch(*arguments_of(case, inputs), blocks=case.blocks)
    assert out.dtype == x.dtype
    assert out.stride() == x.stride() or out.numel() == 1
    return error_of(case, inputs, out)


def main(dtype: str, *slow: str) -> None:
    with np.errstate(over="ignore"):
        print(json.dumps({str(case): error(case, dtype) for case in (SLOW_CASES if slow else CASES)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
