"""Inputs and outputs of a model in float16, whatever it computes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto

from aff_deploy.errors import DataError
from aff_deploy.onnx_file import infer_types
from aff_deploy.precision.exact import counting
from aff_deploy.precision.prepare import source_of
from aff_deploy.precision.retype import retype
from aff_deploy.precision.values import FP16_MAX
from aff_deploy.runtimes import Array
from aff_deploy.runtimes.onnxruntime import OnnxRuntimeRunner


def half_ends(graph: GraphProto, elements: Mapping[str, int]) -> frozenset[str]:
    """fp32 inputs and outputs that can be float16; not inputs that integers are computed from, element by element.

    Args:
        graph: of an fp32 model.
        elements: element types of its tensors, by name.
    """
    _, exact = counting(graph, elements)
    inputs = {value.name for value in graph.input}
    ends = inputs | {value.name for value in graph.output}
    floats = {name for name in ends if elements.get(name) == TensorProto.FLOAT}
    return frozenset(floats - (inputs & exact))


def narrow_ends(typed: ModelProto, model: ModelProto, batches: Sequence[Mapping[str, Array]]) -> ModelProto:
    """`typed` with float16 inputs and outputs; casts lie between them and what is not.

    Args:
        typed: of any precision.
        model: the fp32 model that it was made of.
        batches: inputs by name, on which inputs and outputs are held against float16.

    Raises:
        DataError: naming the one that does not fit.
    """
    ends = half_ends(model.graph, {name: kind.elem_type for name, kind in infer_types(model).items()})
    reach: dict[str, float] = {}
    with OnnxRuntimeRunner(model, frugal=True) as runner:
        for batch in batches:
            for name, array in (*batch.items(), *runner.infer(batch).items()):
                if name in ends:
                    reach[name] = max(reach.get(name, 0.0), float(np.max(np.abs(array), initial=0.0)))
    require_reach(reach)
    source = source_of(typed)
    wide = frozenset(node.name for node in typed.graph.node)
    return retype(typed, source, TensorProto.FLOAT16, wide=wide, ends=ends, weights=source.weights)


def require_reach(reach: Mapping[str, float]) -> None:
    """Refuse inputs or outputs that float16 does not hold; `reach` has the largest magnitude of each.

    Raises:
        DataError: naming the one that does not fit.
    """
    for name, value in reach.items():
        if not value <= FP16_MAX:
            raise DataError(f"{name!r} reaches {value:.3g}, which float16 cannot hold", fix="leave inputs and outputs in fp32")
