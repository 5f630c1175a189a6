"""int8 and fp8 models: what is quantised, what is not, and that the answers stay."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, numpy_helper

from aff_deploy import nets
from aff_deploy.errors import AffDeployError, DataError, ModelError, UsageError
from aff_deploy.export import export_onnx
from aff_deploy.nets.resolve import Network, resolve_network
from aff_deploy.ops import is_fusion
from aff_deploy.passes import optimize
from aff_deploy.precision import quantize as module
from aff_deploy.precision.calibration import load_calibration
from aff_deploy.precision.static import OP_TYPES
from aff_deploy.recipe import Recipe
from aff_deploy.runtimes.feeds import load_npz_feeds
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import Precision, TensorSpec
from tests.passes.graphs import model_of
from tests.support import randomise_batchnorm

Array = Any


def quantize(*arguments: Any, **options: Any) -> ModelProto:
    return module.quantize(*arguments, **options)[0]


BATCH = {"x": np.random.default_rng(1).normal(size=(4, 4, 6, 6)).astype(np.float32)}


def run(model: ModelProto, feeds: dict[str, Array]) -> Array:
    """The first output; ONNX Runtime is kept from dropping a Relu in front of an fp8 QuantizeLinear."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"], disabled_optimizers=["ReluQuantRewrite"]
    )
    return session.run(None, feeds)[0]


def snr_db(reference: Array, found: Array) -> float:
    return float(10 * np.log10((reference**2).mean() / ((found - reference) ** 2).mean()))


def weights_of(model: ModelProto) -> dict[str, onnx.TensorProto]:
    """The tensor that each layer's weights are dequantised from, by the layer's name."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {output: node for node in model.graph.node for output in node.output}
    layers = [node for node in model.graph.node if node.op_type in OP_TYPES]
    dequantised = {node.name: producer[node.input[1]] for node in layers if node.input[1] in producer}
    assert all(node.op_type == "DequantizeLinear" for node in dequantised.values())
    return {name: tensors[node.input[0]] for name, node in dequantised.items()}


@pytest.fixture(scope="module", params=["aff_resnet_digits", "iaff_resnet_digits"])
def digits(request: pytest.FixtureRequest) -> tuple[Network, Recipe, ModelProto]:
    network = resolve_network(request.param)
    assert network.recipe is not None
    return (
        network,
        network.recipe,
        optimize(export_onnx(network.module, network.inputs, exporter="torchscript", verify=False)).model,
    )


@pytest.mark.parametrize(("precision", "least"), [(Precision.INT8, 356), (Precision.FP8, 356)])
def test_the_digits_keep_pytorchs_answers(digits: tuple[Network, Recipe, ModelProto], precision: Precision, least: int) -> None:
    network, recipe, model = digits
    before = model.SerializeToString(deterministic=True)
    quantised = quantize(model, precision, load_calibration(None, network.inputs, recipe).batches)
    assert model.SerializeToString(deterministic=True) == before
    evaluation = recipe.checked_evaluation()
    assert evaluation is not None
    held_out = load_npz_feeds(
        evaluation.data, network.inputs, keys=evaluation.inputs, preprocessing=recipe.preprocessing, batch=360
    )[0]
    reference = PyTorchRunner(network.module, network.inputs).infer(held_out)["output"]
    found = run(quantised, held_out)
    assert int((found.argmax(1) == reference.argmax(1)).sum()) >= least
    if precision is Precision.INT8:
        with OnnxRuntimeRunner(quantised) as runner:
            assert snr_db(reference, runner.infer(held_out)["output"]) > 28


def test_every_layer_outside_the_calls_is_quantised_and_the_calls_read_what_they_read(
    digits: tuple[Network, Recipe, ModelProto],
) -> None:
    network, recipe, model = digits
    quantised = quantize(model, Precision.INT8, load_calibration(None, network.inputs, recipe).batches)
    onnx.checker.check_model(quantised, full_check=True)
    layers = [node.name for node in model.graph.node if node.op_type in OP_TYPES]
    weights = weights_of(quantised)
    assert sorted(weights) == sorted(layers)
    assert {tensor.data_type for tensor in weights.values()} == {TensorProto.INT8}
    constants = {tensor.name: tensor for tensor in quantised.graph.initializer}
    for node in quantised.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not numpy_helper.to_array(constants[node.input[2]]).any(), "not symmetric"
    untouched = [node for node in model.graph.node if node.op_type not in OP_TYPES]
    found = {node.name: node for node in quantised.graph.node}
    assert [node.name for node in untouched if found[node.name] != node] == []
    assert any(is_fusion(node.domain, node.op_type) for node in untouched)
    assert list(quantised.functions) == list(model.functions)
    assert list(quantised.graph.input) == list(model.graph.input)
    assert [value.name for value in quantised.graph.output] == [value.name for value in model.graph.output]
    assert quantised.metadata_props == model.metadata_props
    assert sum(t.ByteSize() for t in weights.values()) < 0.3 * sum(
        t.ByteSize() for t in model.graph.initializer if t.name in {n.input[1] for n in model.graph.node if n.name in weights}
    )


NET = (
    "g (float[N, 4, 6, 6] x) => (float[N, 3] y, float[N, 8, 6, 6] c) "
    "<float[8, 4, 1, 1] k, float[8] b, float[8, 8, 3, 3] k2, float[3, 8] w, float[3] v> {\n"
    "[first] c = Conv(x, k, b)\n[] r = Relu(c)\n[second] d = Conv<pads = [1, 1, 1, 1]>(r, k2)\n"
    "[] s = Add(d, r)\n[] p = GlobalAveragePool(s)\n[] f = Flatten(p)\n[last] y = Gemm<transB = 1>(f, w, v) }"
)


def test_other_readers_of_a_quantised_tensor_get_the_tensor_itself() -> None:
    quantised = quantize(model_of(NET), Precision.INT8, [BATCH])
    add = next(node for node in quantised.graph.node if node.op_type == "Add")
    assert list(add.input) == ["d", "r"]
    assert not any(node.op_type == "Identity" for node in quantised.graph.node)
    assert Counter(node.op_type for node in quantised.graph.node)["QuantizeLinear"] == 3
    # An output of the graph that is quantised for a reader is not itself quantised.
    reference, found = run(model_of(NET), BATCH), run(quantised, BATCH)
    assert 20 < snr_db(reference, found) < 80


def test_layers_may_stay_wide() -> None:
    quantised = quantize(model_of(NET), Precision.INT8, [BATCH], keep_fp32=["second"])
    assert sorted(weights_of(quantised)) == ["first", "last"]
    with pytest.raises(UsageError, match="no node of the model is called 'secnd'; did you mean 'second'"):
        quantize(model_of(NET), Precision.INT8, [BATCH], keep_fp32=["secnd"])
    with pytest.raises(ModelError, match="nothing in the model can be quantised"):
        quantize(model_of(NET), Precision.INT8, [BATCH], keep_fp32=["first", "second", "last"])


SHARED = (
    "g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w, float[4, 4] u> {\n"
    "a = Gemm<transB = 1>(x, w)\nb = MatMul(a, w)\nc = Mul(w, w)\nd = MatMul(c, u)\n"
    "e = MatMul(b, u)\nf = MatMul(e, d)\ny = Neg(f) }"
)


def test_weights_with_several_readers_are_quantised_for_each_as_it_needs() -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)}
    model = model_of(SHARED)
    quantised = quantize(model, Precision.INT8, [feeds])
    product = next(node for node in quantised.graph.node if node.op_type == "Mul")
    assert list(product.input) == ["w", "w"]
    assert snr_db(run(model, feeds), run(quantised, feeds)) > 25


def test_what_onnxruntime_would_get_wrong_stays_wide() -> None:
    model = model_of(
        "g (float[N, 4] x) => (float[N, 4] y) <float[4, 4] w, float[4] b, float[4, 4] w2, float[2, 4, 4] w3> {\n"
        "[halved] h = Gemm<beta = 0.5>(x, w, b)\n[plain] p = Gemm(h, w2)\n[stack] q = MatMul(p, w3)\n"
        "y = ReduceSum<keepdims=0>(q, a) }",
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), "a"))
    feeds = {"x": np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)}
    quantised = quantize(model, Precision.INT8, [feeds])
    assert sorted(weights_of(quantised)) == ["plain"]
    assert snr_db(run(model, feeds), run(quantised, feeds)) > 30


def test_dead_channels_and_dead_tensors_are_no_trouble() -> None:
    weights = np.random.default_rng(0).normal(size=(8, 4, 1, 1)).astype(np.float32)
    weights[3] = 0
    model = model_of(NET, k=weights, k2=np.zeros((8, 8, 3, 3), np.float32), w=np.zeros((3, 8), np.float32))
    for precision in (Precision.INT8, Precision.FP8):
        found = run(quantize(model, precision, [BATCH, {"x": np.zeros((1, 4, 6, 6), np.float32)}]), BATCH)
        np.testing.assert_allclose(found, run(model, BATCH), atol=1e-6)


def test_fp8_rounds_as_fp8_does() -> None:
    model = model_of(NET)
    quantised = quantize(model, Precision.FP8, [BATCH])
    onnx.checker.check_model(quantised, full_check=True)
    assert {tensor.data_type for tensor in weights_of(quantised).values()} == {TensorProto.FLOAT8E4M3FN}
    assert next(entry.version for entry in quantised.opset_import if entry.domain == "") == 19
    # Three bits of mantissa: an error of at most 2**-4 of each value.
    assert 18 < snr_db(run(model, BATCH), run(quantised, BATCH)) < 40
    tensors = {tensor.name: tensor for tensor in quantised.graph.initializer}
    found = next(
        node for node in quantised.graph.node if node.op_type == "DequantizeLinear" and node.input[0] == "k2_quantized"
    )
    scales = numpy_helper.to_array(tensors[found.input[1]])
    wide = numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == "k2"))
    np.testing.assert_allclose(scales, np.abs(wide).max(axis=(1, 2, 3)) / 448, rtol=1e-6)
    rounded = numpy_helper.to_array(tensors["k2_quantized"]).astype(np.float32) * scales.reshape(-1, 1, 1, 1)
    assert (np.abs(rounded - wide) <= 2**-4 * np.abs(wide) + scales.reshape(-1, 1, 1, 1) * 2**-9).all()


def nested() -> ModelProto:
    return model_of(
        "g (float[1, 4] x, bool c) => (float[1, 4] y) <float[4, 4] k> {\nr = MatMul(x, k)\n"
        "y = If (c) <then_branch = t () => (float[1, 4] p) { p = Neg(r) }, "
        "else_branch = e () => (float[1, 4] q) { q = Abs(r) }> }"
    )


def halved() -> ModelProto:
    return model_of("g (float16[N, 4] x) => (float16[N, 4] y) <float16[4, 4] k> { y = MatMul(x, k) }")


REFUSED = {
    "quantised already": (lambda: quantize(model_of(NET), Precision.INT8, [BATCH]), ModelError, "is quantised already"),
    "too new": (lambda: model_of(NET, opset=21, ir=10), ModelError, "opset 21, and only 13 to 20.*--opset 18"),
    "too old": (lambda: model_of(NET, opset=12), ModelError, "opset 12"),
    "nested graphs": (nested, ModelError, r"holds a graph of its own \(If\)"),
    "half precision": (halved, ModelError, "'k' is float16; give the float32 model"),
}


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_a_model_that_cannot_be_quantised_is_refused(make: Any, kind: type[AffDeployError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        quantize(make(), Precision.INT8, [BATCH])
    assert caught.value.fix


def test_a_model_beyond_protobufs_bound_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aff_deploy.precision.wiring.MAX_MODEL_BYTES", 100)
    with pytest.raises(ModelError, match="precision is written up to"):
        quantize(model_of(NET), Precision.INT8, [BATCH])


def test_other_precisions_and_missing_data_are_refused() -> None:
    with pytest.raises(UsageError, match="fp16 is not an 8-bit precision"):
        quantize(model_of(NET), Precision.FP16, [BATCH])
    with pytest.raises(DataError, match="no data to calibrate on"):
        quantize(model_of(NET), Precision.INT8, [])
    with pytest.raises(DataError, match="expected Nx4x6x6"):
        quantize(model_of(NET), Precision.INT8, [{"x": np.zeros((1, 4), np.float32)}])


def test_nothing_is_said_and_logging_stays_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    ear = Ear()
    root.addHandler(ear)
    before = list(root.handlers), list(root.filters), root.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quantize(model_of(NET), Precision.INT8, [BATCH])
        logging.warning("heard")
        assert (list(root.handlers), list(root.filters), root.level) == before
    finally:
        root.removeHandler(ear)
    assert heard == ["heard"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("precision", "wanted"), [(Precision.INT8, "Int8"), (Precision.FP8, "FP8")])
def test_tensorrt_rtx_computes_the_layers_in_8_bits(precision: Precision, wanted: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    said: list[str] = []

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            said.append(text)

    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    model = model_of(NET.replace("[N,", "[4,"))
    assert parser.parse(quantize(model, precision, [BATCH]).SerializeToString()), said[-1]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    assert builder.build_serialized_network(network, config) is not None, said[-1]
    listing = "\n".join(text for text in said if text.startswith("Layers:"))
    layers = [line for line in listing.splitlines() if "LayerType: correlation" in line or "LayerType: gemm" in line]
    assert len(layers) == 3
    assert all(f"Datatype: {wanted}" in line for line in layers), layers


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("aff_resnet50", 21.0), ("iaff_resnext50_32x4d", 24.0)])
def test_imagenet_networks_stay_close(name: str, least: float) -> None:
    torch.manual_seed(0)
    module = getattr(nets, name)().eval()
    randomise_batchnorm(module, seed=3)
    inputs = (TensorSpec("input", ("batch", 3, 224, 224), example=(2, 3, 224, 224)),)
    model = optimize(export_onnx(module, inputs, exporter="torchscript", verify=False)).model
    generator = np.random.default_rng(0)

    def pictures(count: int) -> Array:
        """Smooth from afar, rough from near, as photographs are."""
        scales = (torch.from_numpy(generator.normal(size=(count, 3, side, side)).astype(np.float32)) for side in (4, 16, 64))
        return sum(torch.nn.functional.interpolate(scale, size=(224, 224), mode="bilinear") for scale in scales).numpy()

    batches = [{"input": pictures(4)} for _ in range(4)]
    held_out = {"input": pictures(8)}
    reference = PyTorchRunner(module, inputs).infer(held_out)["output"]
    found = run(quantize(model, Precision.INT8, batches), held_out)
    assert snr_db(reference, found) > least
