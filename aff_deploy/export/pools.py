"""Pooling that rounds up, written so that every reader computes PyTorch's size.

PyTorch leaves out a last window that would begin in the padding, and so do newer runtimes; ONNX's own
shape inference below opset 22 does not, and calls the file wrong or its output too large. Where the
size is static, the same windows can be had by rounding down with more padding at the end.
"""

from __future__ import annotations

from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, helper

from aff_deploy.onnx_file import infer_types, static_shape

POOLS = ("MaxPool", "AveragePool")


def round_down_pools(model: ModelProto) -> None:
    """Rewrite in place the pools of static size that round up; others, and those that count padding, stay."""
    pools = [node for node in model.graph.node if node.op_type in POOLS and _attributes(node).get("ceil_mode")]
    if not pools:
        return
    # Claims of inner sizes may come from the inference that gets them wrong.
    declared = {value.name: value for value in model.graph.value_info}
    for node in pools:
        shape = static_shape(infer_types(model).get(node.input[0]))
        sizes = shape[2:] if shape is not None else ()
        if not sizes or not all(isinstance(size, int) for size in sizes):
            continue
        if not _round_down(node, [size for size in sizes if isinstance(size, int)]):
            continue
        for output in node.output:
            if output in declared:
                model.graph.value_info.remove(declared.pop(output))


def _round_down(node: NodeProto, sizes: list[int]) -> bool:
    """Whether the pool could be written without rounding up."""
    given = _attributes(node)
    kernel, axes = given["kernel_shape"], range(len(sizes))
    strides, dilations = (given.get(key) or [1] * len(sizes) for key in ("strides", "dilations"))
    pads = given.get("pads") or [0] * (2 * len(sizes))
    reach = [dilations[i] * (kernel[i] - 1) + 1 for i in axes]
    counted = node.op_type == "AveragePool" and given.get("count_include_pad", 0)
    if given.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"") or (counted and any(pads)):
        return False
    ends = []
    for i in axes:
        start, end = pads[i], pads[len(sizes) + i]
        windows = -(-(sizes[i] + start + end - reach[i]) // strides[i]) + 1
        # The rule of torch.nn.functional.max_pool2d: the last window begins inside the input or the left padding.
        if (windows - 1) * strides[i] >= sizes[i] + start:
            windows -= 1
        ends.append(max(0, (windows - 1) * strides[i] + reach[i] - sizes[i] - start))
    kept = [a for a in node.attribute if a.name not in ("ceil_mode", "pads", "count_include_pad")]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.append(helper.make_attribute("pads", [*pads[: len(sizes)], *ends]))
    return True


def _attributes(node: NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def declare_outputs(graph: GraphProto, shapes: dict[str, tuple[int, ...]]) -> None:
    """Give outputs of static size the size that PyTorch's have, which exporters infer for themselves."""
    for value in graph.output:
        for dim, size in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=False):
            if dim.HasField("dim_value"):
                dim.dim_value = size
