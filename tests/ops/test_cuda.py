"""The operator on a GPU: every case of the kernels, and networks fused in PyTorch. Skipped by name where there is none."""

from __future__ import annotations

import copy

import pytest
import torch

from aff_deploy.nets import aff_resnet_digits, iaff_resnet_digits
from aff_deploy.ops import fuse_module
from aff_deploy.ops.launch import DTYPES
from aff_deploy.ops.torch_op import attentional_fusion
from tests.ops.kernel_cases import CASES, SLOW_CASES, TOLERANCES, Case, arguments_of, error_of, inputs_of
from tests.support import randomise_batchnorm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")

ALL = [case for case in (*CASES, *SLOW_CASES) if case.blocks is None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_kernels_compute_the_definition(case: Case, dtype: str) -> None:
    inputs = inputs_of(case, dtype)
    there = {name: tensor.cuda() for name, tensor in inputs.items()}
    out = attentional_fusion(*arguments_of(case, there))
    assert out.is_cuda
    assert error_of(case, inputs, out.cpu()) <= TOLERANCES[dtype]


# PyTorch's compiler warns of PyTorch's own functions.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("build", [aff_resnet_digits, iaff_resnet_digits])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_fused_network_gives_what_the_plain_one_gives(build: object, compiled: bool) -> None:
    torch.manual_seed(0)
    net = build().eval()  # type: ignore[operator]
    randomise_batchnorm(net, 1)
    x = torch.randn(5, 1, 8, 8)
    with torch.inference_mode():
        expected = copy.deepcopy(net).double()(x.double())
        fused = fuse_module(net).cuda()
        run = torch.compile(fused, fullgraph=True) if compiled else fused
        torch.testing.assert_close(run(x.cuda()).cpu().double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_the_same_input_gives_the_same_bits_in_a_graph_too() -> None:
    case = Case(channels=256, inter=64, spatial=(14, 14), images=3)
    there = {name: tensor.cuda() for name, tensor in inputs_of(case, "float16").items()}

    def run() -> torch.Tensor:
        return attentional_fusion(*arguments_of(case, there))

    first = run()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, first)
