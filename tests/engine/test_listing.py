"""Reading back what an engine holds: the builder's text, and the inspector's JSON of two versions."""

from __future__ import annotations

import json

from aff_deploy.engine.listing import EngineTensor, Layer, read_inspector, read_log, type_name


def tensor(name: str, dtype: str, dims: str = "-1,16,8,8") -> str:
    strides = "Strides: [1024,1,128,16], StrideOrder: [3,0,2,1]"
    return f"{{ Name: {name}, Dimensions: [{dims}], {strides}, Datatype: {dtype}, Format: (NHWC) Channel major format }}"


REPORT = "\n".join(
    [
        "Layers:",
        "Name: shapes_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: ",
        f"Name: Conv_1 {{odd}}, LayerType: correlation, Inputs: [ {tensor('a', 'Half')}], Constants: [ {tensor('w', 'Half')}, "
        f"{tensor('one', 'Float', '1')}], Outputs: [ {tensor('b', 'Half')}], TacticName: x, StreamId: 0, "
        "Metadata: [ONNX Layer: Conv_1]\x1f[ONNX Layer: Relu [2]]",
        f"Name: sum, LayerType: kgen, Inputs: [ {tensor('b', 'Half')}, {tensor('y', 'Float')}], Constants: [], "
        f"Outputs: [ {tensor('c', 'BFloat16')}], TacticName: y, StreamId: 0, "
        "Metadata: [ONNX Layer: node_of_z | site (AttentionalFusion)]__gemm_from_conv1x1\x1f[ONNX Layer: Conv_1]",
        "",
        "I/O Tensors:",
        " Name: input, IOMode: Input, DataType: Float, Dimensions: [-1,1,8,8], Location: Device, ProfileInfo: [ { } ]",
        " Name: output, IOMode: Output, DataType: Half, Dimensions: [-1,10], Location: Device, ProfileInfo: [ { } ]",
    ]
)


def test_the_builders_report_is_read() -> None:
    found = read_log(REPORT)
    assert found.layers == (
        Layer("shapes_0", "shape_call", (), (), (), ()),
        Layer("Conv_1 {odd}", "correlation", ("float16",), ("float16", "float32"), ("float16",), ("Conv_1", "Relu [2]")),
        Layer(
            "sum",
            "kgen",
            ("float16", "float32"),
            (),
            ("bfloat16",),
            ("node_of_z | site (AttentionalFusion)", "Conv_1"),
        ),
    )
    assert found.tensors == (
        EngineTensor("input", "input", "float32", (-1, 1, 8, 8)),
        EngineTensor("output", "output", "float16", (-1, 10)),
    )


def test_the_inspectors_json_of_old_and_new_versions_is_read() -> None:
    layer = {
        "Name": "conv",
        "LayerType": "CaskConvolution",
        "Outputs": [{"Name": "b", "Format/Datatype": "Channel major INT8 format where channel % 32 == 0"}],
        "Weights": {"Type": "Int8", "Count": 9},
        "Metadata": "[ONNX Layer: Conv_1]\x1e[ONNX Layer: Relu_2]",
    }
    older = layer | {"Inputs": [{"Name": "a", "Format/Datatype": "Row major linear FP16 format"}]}
    newer = layer | {"Inputs": [{"Name": "a", "Datatype": "Half"}]}
    tensors = [{"Name": "x", "IOMode": "Input", "DataType": "Float", "Dimensions": [1, 3]}]
    first = read_inspector(json.dumps({"Layers": [older], "Bindings": ["x", "y"]}))
    second = read_inspector(json.dumps({"Layers": [newer], "I/O Tensors": tensors}))
    expected = Layer("conv", "CaskConvolution", ("float16",), ("int8",), ("int8",), ("Conv_1", "Relu_2"))
    assert first.layers == second.layers == (expected,)
    assert first.tensors == ()
    assert second.tensors == (EngineTensor("x", "input", "float32", (1, 3)),)


def test_types_are_named_alike_however_they_are_spelt() -> None:
    spelt = {
        "float16": ("Half", "kHALF", "FP16"),
        "float32": ("Float", "FP32", "kFLOAT"),
        "bfloat16": ("BFloat16", "BF16", "kBF16"),
        "int8": ("Int8", "INT8", "kINT8"),
        "float8": ("FP8", "kFP8"),
    }
    assert {name: {type_name(text) for text in texts} for name, texts in spelt.items()} == {name: {name} for name in spelt}
