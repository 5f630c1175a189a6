"""Write compiled kernels into the call nodes of a model, for TensorRT's plugin to launch.

The calls stay calls of the same local functions: whoever has no plugin (ONNX Runtime, TensorRT-RTX)
expands them as before and does not look at the new attributes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto, helper

from aff_deploy.errors import UsageError
from aff_deploy.ops import DOMAIN, is_fusion
from aff_deploy.ops.compile import PTX_VERSIONS, compile_call
from aff_deploy.ops.launch import CONTRACT, DTYPES, KERNELS, LAYOUTS, Call, DType
from aff_deploy.passes.functions import attributes
from aff_deploy.passes.fuse_attention import PLUGIN_VERSION
from aff_deploy.passes.kernel_calls import kernel_call

ROW = 12
"""Numbers to an image in the attribute ``kernels_table``."""

_OURS = ("kernels_contract", "kernels_branches", "kernels_blend", "context_channels", "kernels_table", "kernels_text")
_DISPATCH = ("plugin_namespace", "plugin_version")


@dataclass(frozen=True)
class Attached:
    """A model with kernels in it.

    Attributes:
        model: the model.
        plugin: sites that carry kernels.
        native: sites that do not, and why.
    """

    model: ModelProto
    plugin: tuple[str, ...]
    native: tuple[tuple[str, str], ...]

    @property
    def calls(self) -> frozenset[str]:
        """Names of the call nodes that carry kernels; an iAFF is two."""
        return frozenset(n.name for n in self.model.graph.node if any(a.name == "kernels_table" for a in n.attribute))


def attach_kernels(
    model: ModelProto, *, capabilities: Sequence[int] = (80,), dtypes: Sequence[DType] | None = None, cache: Path | None = None
) -> Attached:
    """Give every fusion that gains by it its kernels, and the attributes by which TensorRT finds the plugin.

    Args:
        model: an optimised model, in its final types if there is a choice; left as it is.
        capabilities: compute capabilities to compile for; 80 runs on everything later too.
        dtypes: types to compile for; None for that of each call alone.
        cache: folder of compiled kernels; None for the user's.

    Returns:
        A copy in which calls without kernels lack ``plugin_namespace``, so that TensorRT expands them.

    Raises:
        MissingDependency: Triton is not installed.
        UsageError: there are no kernels for a capability.
    """
    _check(capabilities, dtypes)
    result = copy.deepcopy(model)
    graph = result.graph
    types = {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    plugin, native = [], []
    for node in _inner_calls(result):
        _drop(node, (*_OURS, *_DISPATCH))
        native.append((_site(node), "it stands inside a branch, a loop or a function"))
    for node in graph.node:
        if not is_fusion(node.domain, node.op_type):
            continue
        _drop(node, (*_OURS, *_DISPATCH))
        site = _site(node)
        call = kernel_call(node, types, constants)
        if isinstance(call, str):
            native.append((site, call))
            continue
        _write(node, call, capabilities, (call.dtype,) if dtypes is None else dtypes, cache)
        plugin.append(site)
    return Attached(result, tuple(plugin), tuple(native))


def _check(capabilities: Sequence[int], dtypes: Sequence[DType] | None) -> None:
    known = ", ".join(map(str, PTX_VERSIONS))
    if not capabilities or any(type(one) is not int or one not in PTX_VERSIONS for one in capabilities):
        raise UsageError(f"there are no kernels for compute capabilities {list(capabilities)}", fix=f"choose among {known}")
    if dtypes is not None and (not dtypes or any(one not in DTYPES for one in dtypes)):
        raise UsageError(f"there are no kernels for types {list(dtypes)}", fix=f"choose among {', '.join(DTYPES)}")


def _inner_calls(model: ModelProto) -> Iterator[NodeProto]:
    """Calls that are not in the main graph: those carry no kernels."""
    inside = [node for function in model.functions for node in function.node]
    inside += [node for outer in model.graph.node for graph in _graphs(outer) for node in graph.node]
    while inside:
        node = inside.pop()
        if is_fusion(node.domain, node.op_type):
            yield node
        inside += [inner for graph in _graphs(node) for inner in graph.node]


def _graphs(node: NodeProto) -> list[GraphProto]:
    return [graph for attribute in node.attribute for graph in (attribute.g, *attribute.graphs) if graph.node]


def _site(node: NodeProto) -> str:
    return str(attributes(node).get("site", node.name))


def list_kernels(model: ModelProto) -> tuple[dict[str, Any], ...]:
    """What the calls of a model carry, in order: name, contract, types, compute capabilities, and bytes of PTX."""
    found = []
    for node in model.graph.node:
        said = attributes(node) if is_fusion(node.domain, node.op_type) else {}
        if "kernels_table" not in said:
            continue
        table, text, contract = said["kernels_table"], said.get("kernels_text"), said.get("kernels_contract")
        rows = _rows(table, text)
        dtypes: list[str] = [DTYPES[index] for index in sorted({row[1] for row in rows})]
        found.append(
            {
                "name": _site(node),
                "contract": contract if isinstance(contract, int) else None,
                "dtypes": dtypes or ["malformed"],
                "capabilities": sorted({row[3] for row in rows}),
                "bytes": len(text) if isinstance(text, str) else 0,
            }
        )
    return tuple(found)


def _rows(table: object, text: object) -> list[list[int]]:
    """The rows of a table; none where they are not what `attach_kernels` writes."""
    if (
        not isinstance(table, list)
        or not isinstance(text, str)
        or len(table) % ROW
        or any(type(one) is not int for one in table)
    ):
        return []
    rows = [table[i : i + ROW] for i in range(0, len(table), ROW)]
    within = all(
        kernel in range(len(KERNELS))
        and dtype in range(len(DTYPES))
        and layout in range(len(LAYOUTS))
        and 10 <= capability < 1000
        and 0 <= start < start + size <= len(text)
        for kernel, dtype, layout, capability, start, size, *_ in rows
    )
    return rows if within else []


def _drop(node: NodeProto, names: Sequence[str]) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name not in names]
    del node.attribute[:]
    node.attribute.extend(kept)


def _write(node: NodeProto, call: Call, capabilities: Sequence[int], dtypes: Sequence[DType], cache: Path | None) -> None:
    table: list[int] = []
    texts: dict[str, int] = {}
    end = 0
    for capability in sorted(set(capabilities)):
        for dtype in sorted(set(dtypes), key=DTYPES.index):
            for layout in LAYOUTS:
                for image in compile_call(replace(call, dtype=dtype, layout=layout), capability, cache=cache):
                    if image.ptx not in texts:
                        texts[image.ptx] = end
                        end += len(image.ptx)
                    row = [KERNELS.index(image.kernel), DTYPES.index(dtype), LAYOUTS.index(layout), capability]
                    row += [texts[image.ptx], len(image.ptx), image.threads, image.shared, *image.sizes]
                    table += row + [0] * (ROW - len(row))
    _drop(node, ("channels", "inter_channels"))
    written = {
        "channels": call.channels,
        "inter_channels": call.inter,
        "plugin_namespace": DOMAIN,
        "plugin_version": PLUGIN_VERSION,
        "kernels_contract": CONTRACT,
        "kernels_branches": ("local" in call.branches) + 2 * ("global" in call.branches),
        "kernels_blend": int(call.blend),
        "context_channels": call.context_channels,
        "kernels_table": table,
        "kernels_text": "".join(texts),
    }
    node.attribute.extend(helper.make_attribute(name, value) for name, value in written.items())
