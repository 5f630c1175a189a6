"""Real builds with TensorRT-RTX, whose builder needs no GPU."""

from __future__ import annotations

import _thread
import signal
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from aff_deploy.engine import progress
from aff_deploy.engine.build import Plan, build_plan
from aff_deploy.engine.options import BuildOptions
from aff_deploy.engine.proof import prove
from aff_deploy.errors import EngineError
from aff_deploy.passes import optimize
from aff_deploy.passes.functions import attach_functions
from aff_deploy.runtimes.backends import TENSORRT_RTX
from aff_deploy.spec import Precision, ShapeProfile
from tests.passes.attention import Attention

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

DIMS = (8, 5, 6)


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    fused = optimize(Attention().build()).model
    attach_functions(fused, target="gpu")
    return fused


@pytest.fixture
def file(model: onnx.ModelProto, tmp_path: Path) -> Path:
    path = tmp_path / "attention.onnx"
    onnx.save(model, path)
    return path


def profile(low: int, usual: int, high: int) -> ShapeProfile:
    return ShapeProfile(*(dict.fromkeys(("x", "y"), (n, *DIMS)) for n in (low, usual, high)))


def build(file: Path, *profiles: ShapeProfile, options: BuildOptions | None = None) -> Plan:
    return build_plan(file, TENSORRT_RTX, profiles, options)


def test_an_engine_is_built_and_read_back(model: onnx.ModelProto, file: Path) -> None:
    plan = build(file, profile(1, 8, 32))
    assert bytes(memoryview(plan.plan)[:4]) == b"vtrt"
    (listing,) = plan.listings
    assert {tensor.name: tensor.shape for tensor in listing.tensors} == {
        "x": (-1, *DIMS),
        "y": (-1, *DIMS),
        "out": (-1, *DIMS),
    }
    found = prove(model, listing, Precision.FP32, plan.weight_bytes)
    assert found.passed
    assert found.nodes == found.in_precision == 4
    assert not prove(model, listing, Precision.FP16, plan.weight_bytes).passed
    assert set(plan.seconds) == {"parse", "build"}


def test_several_profiles_and_architectures(file: Path) -> None:
    plan = build(
        file, profile(1, 1, 1), profile(2, 8, 32), options=BuildOptions(compute_capabilities=("8.6", "8.9"), tf32=False)
    )
    assert plan.listings


def test_shapes_that_contradict_the_model_are_refused_with_the_way_round(file: Path) -> None:
    wrong = ShapeProfile(*({"x": (n, *DIMS), "y": (n + 1, *DIMS)} for n in (2, 3, 4)))
    with pytest.raises(EngineError, match="TensorRT-RTX cannot build the engine"):
        build(file, wrong)


def test_an_operator_that_nobody_imports_is_named(tmp_path: Path) -> None:
    path = tmp_path / "det.onnx"
    text = '<ir_version: 8, opset_import: ["" : 18]> m (float[2,3,3] x) => (float[2] out) { [corner] out = Det(x) }'
    onnx.save(parser.parse_model(text), path)
    with pytest.raises(EngineError, match=r"cannot take node 'corner' \(Det\)") as caught:
        build(path)
    assert "replace the operator" in caught.value.fix


def test_types_that_do_not_agree_are_no_matter_of_the_missing_gpu(tmp_path: Path) -> None:
    path = tmp_path / "mixed.onnx"
    text = '<ir_version: 8, opset_import: ["" : 18]> m (float[2] x, float16[2] y) => (float[2] out) { [sum] out = Add(x, y) }'
    onnx.save(parser.parse_model(text), path)
    with pytest.raises(EngineError, match=r"node 'sum' \(Add\).* must have same input types"):
        build(path)


def test_a_call_without_a_function_names_the_call(model: onnx.ModelProto, tmp_path: Path) -> None:
    lost = onnx.ModelProto()
    lost.CopyFrom(model)
    del lost.functions[:]
    path = tmp_path / "lost.onnx"
    onnx.save(lost, path)
    with pytest.raises(EngineError, match="AttentionalFusion"):
        build(path, profile(1, 8, 32))


def test_too_little_workspace_names_the_option(tmp_path: Path) -> None:
    channels, size = 64, 56
    weight = numpy_helper.from_array(np.full((channels, channels, 3, 3), 0.1, np.float32), "w")
    shape = f"float[1,{channels},{size},{size}]"
    text = (
        f'<ir_version: 8, opset_import: ["" : 18]> m ({shape} x) => ({shape} out) {{ out = Conv<pads = [1, 1, 1, 1]>(x, w) }}'
    )
    model = parser.parse_model(text)
    model.graph.initializer.append(weight)
    path = tmp_path / "conv.onnx"
    onnx.save(model, path)
    with pytest.raises(EngineError) as caught:
        build(path, options=BuildOptions(workspace=1))
    assert "--workspace" in caught.value.fix


def test_an_interruption_cancels_the_build(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    told: list[str] = []

    def interrupt(text: str) -> None:
        if not told:
            _thread.interrupt_main()
        told.append(text)

    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            build_plan(file, TENSORRT_RTX, [profile(1, 8, 32)], progress=interrupt)
    finally:
        signal.signal(signal.SIGINT, former)
    assert told[0].startswith("Building engine")
    assert build(file, profile(1, 8, 32)).listings  # and the next one works
