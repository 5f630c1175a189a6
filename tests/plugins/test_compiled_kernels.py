"""The compiled kernels, executed by the stand-in driver: their results, and that no access to memory is wrong."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from aff_deploy.ops.compile import KernelImage, compile_call
from aff_deploy.ops.launch import DTYPES, choose_blocks
from tests.ops.kernel_cases import CASES, SLOW_CASES, TOLERANCES, Case, error_of, inputs_of
from tests.plugins.stand_in import DriverError, Run, StandIn, run_call

# Where not all cases are tried: products of one and of several blocks, tails, both layouts.
SOME = tuple(case for case in CASES if case.blocks is None and case.inter in (16, 20, 65, 130))


@pytest.fixture(scope="module")
def device(stand_in_library: Path) -> StandIn:
    return StandIn(stand_in_library)


def run(device: StandIn, case: Case, dtype: str, capability: int, cache: Path) -> tuple[Run, float]:
    call = case.call(dtype)
    blocks = case.blocks or choose_blocks(call)
    images = compile_call(call, capability, blocks=blocks, cache=cache)
    inputs = inputs_of(case, dtype)
    result = run_call(device, images, call, blocks, inputs, case.scale)
    return result, error_of(case, inputs, result.out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_kernels_compute_the_definition(device: StandIn, kernel_cache: Path, case: Case, dtype: str) -> None:
    _, error = run(device, case, dtype, 80, kernel_cache)
    assert error <= TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", [90, 120])
def test_so_do_those_for_later_capabilities(device: StandIn, kernel_cache: Path, capability: int, dtype: str) -> None:
    # From 90 on products of 64 rows are those of four warps together (wgmma), and fp32 comes in pairs on 120.
    for case in SOME:
        _, error = run(device, case, dtype, capability, kernel_cache)
        assert error <= TOLERANCES[dtype], case


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("capability", [80, 86, 89, 90, 120])
def test_every_case_on_every_capability(device: StandIn, kernel_cache: Path, capability: int, dtype: str) -> None:
    for case in (*CASES, *SLOW_CASES):
        _, error = run(device, case, dtype, capability, kernel_cache)
        assert error <= TOLERANCES[dtype], case


def test_what_the_stand_in_does_not_execute_it_refuses(device: StandIn, kernel_cache: Path) -> None:
    """Products of matrices on compute capability 10.0 go through its tensor memory."""
    with pytest.raises(DriverError, match=r"does not know the instruction tcgen05"):
        run(device, Case(channels=256, inter=64, spatial=(8, 16)), "float16", 100, kernel_cache)


def test_two_runs_give_the_same_bits(device: StandIn, kernel_cache: Path) -> None:
    case = Case(channels=200, inter=33, spatial=(7, 7))
    first, second = (run(device, case, "float16", 80, kernel_cache)[0].out for _ in range(2))
    assert torch.equal(first, second)


def test_parts_of_channels_are_added_up(device: StandIn, kernel_cache: Path) -> None:
    """A small input is divided; a large one is not, and its hidden values need no memory."""
    divided, error = run(device, Case(channels=512, inter=16, spatial=(7, 7), images=1), "float16", 80, kernel_cache)
    assert error <= TOLERANCES["float16"]
    assert divided.plan.splits == 16
    assert divided.sectors["hidden"].written > 0
    whole, error = run(device, Case(channels=16, inter=4, spatial=(64, 64), images=8), "float16", 80, kernel_cache)
    assert error <= TOLERANCES["float16"]
    assert whole.plan.splits == 1
    assert "hidden" not in whole.sectors


@pytest.mark.parametrize("last", [False, True])
def test_x_and_y_are_read_twice_and_the_output_is_written_once(device: StandIn, kernel_cache: Path, last: bool) -> None:
    result, _ = run(device, Case(channels=64, inter=4, spatial=(32, 32), images=1, last=last), "float16", 80, kernel_cache)
    size = result.out.numel() * 2 // 32
    assert (result.sectors["x"].read, result.sectors["y"].read, result.sectors["out"].written) == (2 * size, 2 * size, size)
    assert result.sectors["inner"].written == size * 4 // 64


def changed(image: KernelImage, old: str, new: str) -> KernelImage:
    assert old in image.ptx, old
    return dataclasses.replace(image, ptx=image.ptx.replace(old, new))


MISTAKES = [
    ("aff_context", "\tbar.sync \t0;\n", "", r"no barrier between|copy is still writing"),
    ("aff_context", "\tcp.async.wait_group \t", "\tcp.async.wait_group \t9", r"copy is still writing"),
    ("aff_reduce", "%ctaid.x;", "%nctaid.x;", r"outside of every allocation|another block of the launch wrote|never written"),
    ("aff_fuse", "%ctaid.x;", "%nctaid.x;", r"outside of every allocation|another block of the launch wrote|never written"),
    ("aff_fuse", "\tret;\n", "", r"runs past the kernel's end"),
    ("aff_fuse", ".reqntid 256", ".reqntid 128", r"cuLaunchKernel gave 1"),
]


@pytest.mark.parametrize(("kernel", "old", "new", "said"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_mistake_in_the_text_is_found(
    device: StandIn, kernel_cache: Path, kernel: str, old: str, new: str, said: str
) -> None:
    """The checks see what they are there for: each of these makes an access that no kernel may make."""
    case = Case(channels=64, inter=20, spatial=(9, 9))
    call, inputs = case.call("float16"), inputs_of(case, "float16")
    images = compile_call(call, 80, cache=kernel_cache)
    broken = [changed(image, old, new) if image.kernel == kernel else image for image in images]
    with pytest.raises(DriverError, match=said):
        run_call(device, broken, call, choose_blocks(call), inputs, 1.0)
