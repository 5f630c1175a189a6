"""What the tests of precision share: small models, and typed models run as they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from aff_deploy.evaluate import RecordingRunner
from aff_deploy.export import export_onnx
from aff_deploy.nets.resolve import network_of_recipe
from aff_deploy.onnx_file import infer_types
from aff_deploy.passes import optimize
from aff_deploy.precision import Typed, evaluator, to_precision
from aff_deploy.recipe import find_recipe
from aff_deploy.runtimes.feeds import load_npz_feeds
from aff_deploy.runtimes.pytorch import PyTorchRunner
from aff_deploy.spec import Precision
from tests.passes.graphs import run_ort

Array = NDArray[Any]


@cache
def digits(name: str) -> tuple[ModelProto, list[dict[str, Array]], Array]:
    """An optimised bundled network, its evaluation data, and PyTorch's answers."""
    recipe = find_recipe(name)
    assert recipe is not None
    assert recipe.evaluation is not None
    network = network_of_recipe(recipe)
    model = optimize(export_onnx(network.module, network.inputs, exporter="torchscript", verify=False)).model
    batches = load_npz_feeds(
        recipe.evaluation.data,
        network.inputs,
        keys=recipe.evaluation.inputs,
        preprocessing=recipe.preprocessing,
    )
    return model, batches, answers(PyTorchRunner(network.module, network.inputs), batches)


def answers(runner: Any, batches: Sequence[Mapping[str, Array]]) -> Array:
    recording = RecordingRunner(runner, len(batches))
    for batch in batches:
        recording.infer(batch)
    return np.concatenate(recording.answers)


def typed(model: ModelProto, *batches: dict[str, Array], precision: str = "fp16", **options: Any) -> Typed:
    """`model` in a precision, checked; the one that goes in stays as it is."""
    before = model.SerializeToString(deterministic=True)
    result = to_precision(model, Precision(precision), batches=batches, observed="the test's data", **options)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(result.model, full_check=True)
    return result


def computed(result: Typed, feeds: dict[str, Array]) -> dict[str, Array]:
    with evaluator(result) as runner:
        return runner.infer(feeds)


def elements(model: ModelProto) -> dict[str, str]:
    """The element type of each tensor, in words."""
    return {name: TensorProto.DataType.Name(kind.elem_type) for name, kind in infer_types(model).items()}


def wide(result: Typed) -> dict[str, str]:
    return {kept.name: kept.reason for kept in result.kept_wide}


def op_counts(model: ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


SLACK = {"fp16": 4e-3, "bf16": 3e-2}


def assert_computes(model: ModelProto, feeds: dict[str, Any], precision: str = "fp16", **options: Any) -> dict[str, str]:
    """The typed model gives what `model` gives, up to the precision's rounding; what was kept wide, and why."""
    result = typed(model, feeds, precision=precision, **options)
    expectations = dict(zip((value.name for value in model.graph.output), run_ort(model, feeds), strict=True))
    for name, actual in computed(result, feeds).items():
        expected = expectations[name]
        if expected.dtype.kind != "f":
            np.testing.assert_array_equal(actual, expected)
            continue
        scale = float(np.max(np.abs(expected), initial=1e-6))
        assert np.max(np.abs(actual - expected), initial=0.0) <= SLACK[precision] * scale
    return wide(result)
