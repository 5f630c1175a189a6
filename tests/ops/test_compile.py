"""Kernels compiled ahead of time: reproducible text, assembled by ptxas for every architecture without a spill."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aff_deploy.errors import UsageError
from aff_deploy.ops.compile import PTX_VERSIONS, compile_call, parameters
from aff_deploy.ops.launch import KERNELS, Call, choose_blocks, constants
from tests.ops.assembling import assembled

pytest.importorskip("triton", reason="the kernels need triton: Linux, Python 3.11 or later")

SHARED_LIMIT = 99 * 1024
"""Bytes of shared memory that a block may have on sm_86, sm_89 and sm_120, the least of all."""

SMALL = Call(24, 5, 24, "float16")


@pytest.fixture(autouse=True)
def own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AFF_DEPLOY_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def assert_fits(call: Call, capability: int, folder: Path) -> None:
    for image in compile_call(call, capability):
        registers, spilt, _ = assembled(image, folder)
        where = f"{image.kernel} of {call} for {capability}"
        assert spilt == 0, f"{where} spills {spilt} bytes"
        assert registers * image.threads <= 65536, where
        assert image.shared <= SHARED_LIMIT, f"{where} takes {image.shared} bytes of shared memory"


# Each architecture once, and each type, layout and size at least once.
@pytest.mark.parametrize(
    ("capability", "call"),
    [
        (80, Call(256, 64, 256, "float16", multiple=16)),
        (86, Call(100, 7, 100, "float32", "channels_last", activation="Silu")),
        (89, Call(1024, 64, 1024, "bfloat16")),
        (90, Call(64, 32, 128, "float16", context="explicit", branches=("local",), activation="Silu")),
        (100, Call(2048, 128, 2048, "float16", "channels_last")),
        (120, Call(256, 64, 256, "bfloat16", "channels_last", context="self", blend=False)),
    ],
    ids=lambda value: f"sm_{value}" if isinstance(value, int) else value.dtype,
)
def test_assembled_without_spills(capability: int, call: Call, tmp_path: Path) -> None:
    assert_fits(call, capability, tmp_path)


EVERY = [
    Call(channels, inter, channels, dtype, layout, multiple=multiple)  # type: ignore[arg-type]
    for dtype in ("float32", "float16", "bfloat16")
    for channels, inter in ((100, 7), (256, 64), (512, 128), (1024, 64), (2048, 128), (2048, 512))
    # bfloat16 has the blocks of float16.
    if dtype != "bfloat16" or channels == 256
    for layout, multiple in (("linear", 1), ("linear", 16), ("channels_last", 1))
]


# 86 and 89 have the instructions of 80.
CAPABILITIES = [pytest.param(one, marks=[pytest.mark.slow] * (one in (86, 89))) for one in PTX_VERSIONS]


# Of the calls that get the same blocks, the largest.
LARGEST = {(call.dtype, call.layout, choose_blocks(call)): call for call in EVERY}
CALLS = [
    pytest.param(
        call,
        id=f"{call.dtype}-{call.layout}{call.multiple}-{call.channels}x{call.inter}",
        marks=[pytest.mark.slow] * (call not in LARGEST.values()),
    )
    for call in EVERY
]


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("call", CALLS)
def test_every_table_entry_is_assembled_without_spills(call: Call, capability: int, tmp_path: Path) -> None:
    assert_fits(call, capability, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 120])
@pytest.mark.parametrize(
    "change",
    [
        {"context": "self", "blend": False},
        {"context": "explicit", "context_channels": 500},
        {"context": "concat", "context_channels": 512, "branches": ("local",), "activation": "Silu"},
        {"branches": ("global",), "gate": "HardSigmoid"},
        {"activation": "Silu"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_variant_is_assembled_without_spills(
    dtype: str, change: dict[str, object], capability: int, tmp_path: Path
) -> None:
    assert_fits(dataclasses.replace(Call(256, 64, 256, dtype), **change), capability, tmp_path)  # type: ignore[arg-type]


def test_sizes_of_one_may_be_constants() -> None:
    """Launched from PyTorch, Triton compiles integers that are 1 as constants."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aff_deploy.ops import kernels

    sizes = {"images", "positions", "tiles", "splits", "rows"}
    for name, fixed in constants(SMALL, choose_blocks(SMALL)).items():
        function = getattr(kernels, name)
        fixed |= {size: 1 for size in parameters(name) if size in sizes}
        kinds = {"chunk": "i32", "scale": "fp32", **dict.fromkeys(("hidden", "partial", "logits"), "*fp32")}
        signature = {word: "constexpr" if word in fixed else kinds.get(word, "*fp16") for word in function.arg_names}
        source = ASTSource(function, signature, fixed)
        made = triton.compile(source, target=GPUTarget("cuda", 80, 32), options={"enable_fp_fusion": True})
        assert name in made.asm["ptx"]


def test_text_is_the_same_in_another_process(tmp_path: Path) -> None:
    here = [image.ptx for image in compile_call(SMALL)]
    program = (
        "import json; from aff_deploy.ops.compile import compile_call; from aff_deploy.ops.launch import Call;"
        "print(json.dumps([image.ptx for image in compile_call(Call(24, 5, 24, 'float16'))]))"
    )
    # Elsewhere: another folder to run in, other caches, other hash seeds.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONHASHSEED": "7"}
    environment |= {"AFF_DEPLOY_CACHE": str(tmp_path / "other"), "TRITON_CACHE_DIR": str(tmp_path / "other triton")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == here


def test_text_is_bare_and_says_what_the_contract_says() -> None:
    images = compile_call(SMALL)
    assert [image.kernel for image in images] == list(KERNELS) == ["aff_context", "aff_reduce", "aff_fuse"]
    for image in images:
        assert image.ptx.startswith(".version 8.0\n.target sm_80\n")
        assert not re.search(r"//|\.loc|\.file|debug|kernels\.py", image.ptx)
        assert f".reqntid {image.threads}\n" in image.ptx
        entry = re.search(rf"\.visible \.entry {image.kernel}\((.*?)\)", image.ptx, re.DOTALL)
        assert entry is not None
        kinds = re.findall(r"\.param \.(\w+)", entry[1])
        sizes = {"images", "positions", "tiles", "splits", "chunk", "rows"}
        expected = ["u32" if name in sizes else "f32" if name == "scale" else "u64" for name in parameters(image.kernel)]
        # Triton's own two, which a launcher passes as null.
        assert kinds == [*expected, "u64", "u64"]
    blocks = choose_blocks(SMALL)
    assert images[0].sizes == (blocks.context_i, blocks.context_p, blocks.context_k, 1)
    assert images[2].sizes == (blocks.fuse_span, blocks.fuse_p, 1)


def test_what_was_compiled_is_kept_and_what_was_damaged_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import aff_deploy.ops.compile as module

    folder = tmp_path / "kept"
    first = compile_call(SMALL, cache=folder)
    kept = sorted(folder.iterdir())
    assert len(kept) == 3
    monkeypatch.setattr(module, "_compiled", None)
    assert compile_call(SMALL, cache=folder) == first
    monkeypatch.undo()
    for path, text in zip(kept, ("{", "[]", path_of_other(kept[2])), strict=True):
        path.write_text(text, encoding="ascii")
    assert compile_call(SMALL, cache=folder) == first
    assert sorted(folder.iterdir()) == kept


def test_whatever_is_kept_besides_the_text_is_checked_too(tmp_path: Path) -> None:
    first = compile_call(SMALL, cache=tmp_path)
    for path in tmp_path.glob("*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text(encoding="ascii")), "shared": 7}), encoding="ascii")
    assert compile_call(SMALL, cache=tmp_path) == first
    next(iter(tmp_path.glob("*.json"))).write_text("[" * 100_000, encoding="ascii")
    assert compile_call(SMALL, cache=tmp_path) == first


def test_without_a_folder_to_keep_them_in_kernels_are_compiled_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    images = compile_call(SMALL, cache=tmp_path / "file")
    assert [image.kernel for image in images] == list(KERNELS)


def path_of_other(path: Path) -> str:
    """The file with one character of the text changed."""
    return path.read_text(encoding="ascii").replace(".version 8.0", ".version 8.1")


def test_another_call_or_capability_is_another_file(tmp_path: Path) -> None:
    compile_call(SMALL, cache=tmp_path)
    compile_call(dataclasses.replace(SMALL, layout="channels_last"), cache=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 6
    compile_call(SMALL, 86, cache=tmp_path)
    assert len(list(tmp_path.glob("*.json"))) == 9


def test_unknown_capability() -> None:
    with pytest.raises(UsageError, match="compute capability 75; choose among 80, 86"):
        compile_call(SMALL, 75)
