"""Python and C++ agree: what attach_kernels writes is read by the launcher, and both compute the same geometry."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aff_deploy.ops.compile import KernelImage, launch_sizes, parameters
from aff_deploy.ops.launch import KERNELS, Call, choose_blocks, geometry
from tests.plugins.building import run
from tests.plugins.cases import Case, Values, Variant, attributes_of
from tests.plugins.stand_in import SIZES

CALLS = ((1, 1), (1, 49), (2, 63), (32, 196), (32, 3136), (256, 1024))
CASES = (
    Case(),
    Case(Variant(context="explicit", activation="Silu"), dtype="float16", context_channels=80),
    Case(Variant(branches=("local",)), dtype="bfloat16", channels=1024, inter=64),
    Case(Variant(context="self", blend=False), channels=50, inter=7),
    Case(Variant(branches=("global",)), channels=200, inter=13),
)


def call_of(case: Case, layout: str, multiple: int) -> Call:
    variant = case.variant
    return Call(
        channels=case.channels,
        inter=case.inter,
        context_channels=case.context_channels if variant.context == "explicit" else case.channels,
        dtype=case.dtype,
        layout=layout,  # type: ignore[arg-type]
        context=variant.context,
        blend=variant.blend,
        branches=variant.branches,
        activation=variant.activation,
        gate=variant.gate,
        multiple=multiple,
    )


def stub(call: Call, capability: int = 80, *, cache: Path | None = None) -> tuple[KernelImage, ...]:
    """What `compile_call` gives, but that the kernels do nothing: compiling takes seconds."""
    made = []
    for kernel in KERNELS:
        kinds = ["u32" if name in SIZES else "f32" if name == "scale" else "u64" for name in parameters(kernel)]
        listed = ", ".join(f".param .{kind} {kernel}_{index}" for index, kind in enumerate([*kinds, "u64", "u64"]))
        ptx = f".version 8.0\n.target sm_{capability}\n.visible .entry {kernel}({listed}) {{ ret; }}\n// {call}\n"
        made.append(KernelImage(kernel, ptx, capability, 128, 0, launch_sizes(call, choose_blocks(call), kernel)))
    return tuple(made)


def read_back(built: Path, folder: Path, case: Case, said: Values) -> list[list[str]]:
    """What the C++ side makes of the attributes: a row for every call and image."""
    (folder / "table").write_bytes(np.array(said["kernels_table"], np.int32).tobytes())
    (folder / "text").write_bytes(said["kernels_text"].encode())
    sizes = [str(said[name]) for name in ("channels", "context_channels", "inter_channels")]
    program = str(built / "tests" / "contract_check")
    command = (program, case.variant.op_type, str(folder / "table"), str(folder / "text"), *sizes)
    return [line.split() for line in run(*command, stdin="\n".join(f"{n} {p}" for n, p in CALLS)).splitlines()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_both_sides_compute_the_same_geometry(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr("aff_deploy.passes.kernels.compile_call", stub)
    said = attributes_of(replace(case, spatial=(8, 6)), tmp_path, capabilities=(80, 90))
    lines = read_back(built, tmp_path, case, said)
    assert len(lines) == len(CALLS) * 4, "images for two layouts and two capabilities"
    for index, line in enumerate(lines):
        images, positions = CALLS[index // 4]
        call = call_of(case, line[1], 16 if line[1] == "linear" else 1)
        assert line[0] == case.dtype
        assert int(line[3]) == call.multiple
        wanted = geometry(call, choose_blocks(call), images, positions)
        assert list(map(int, line[4:16])) == [
            wanted.tiles,
            wanted.splits,
            wanted.chunk,
            wanted.rows,
            wanted.fuse_tiles,
            wanted.grids["aff_context"],
            wanted.grids["aff_reduce"],
            wanted.grids["aff_fuse"],
            4 * wanted.inner,
            4 * wanted.partial,
            4 * wanted.logits,
            4 * wanted.workspace,
        ]
        assert int(line[16]) >= 4 * wanted.workspace


def test_compiled_kernels_are_read(built: Path, tmp_path: Path, kernel_cache: Path) -> None:
    """Entry names, parameters and threads of real PTX are what the launcher expects."""
    case = Case(dtype="float16")
    lines = read_back(built, tmp_path, case, attributes_of(case, kernel_cache))
    assert {(line[0], line[1], line[2]) for line in lines} == {("float16", "linear", "80"), ("float16", "channels_last", "80")}


def test_another_number_of_parameters_is_refused(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aff_deploy.passes.kernels.compile_call", stub)
    said = attributes_of(Case(), tmp_path)
    said["kernels_text"] = said["kernels_text"].replace(".param .f32 aff_fuse_9", ".param .u64 aff_fuse_9")
    with pytest.raises(AssertionError, match=r"the kernel aff_fuse takes .* its PTX is from another version"):
        read_back(built, tmp_path, Case(), said)
