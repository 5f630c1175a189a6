"""Nothing inside a fusion may be seen from outside: it would vanish."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet

import onnx_graphsurgeon as gs

from aff_deploy.passes.algebra import MAX_NODES
from aff_deploy.passes.branch import Refused
from aff_deploy.passes.graph import described, is_op, producer, same_shape


def require_private(
    nodes: Mapping[int, gs.Node],
    made: tuple[gs.Tensor, ...],
    outputs: Mapping[str, str],
    shared: AbstractSet[int],
    inputs: Sequence[gs.Tensor],
) -> None:
    """Of what `nodes` compute, only the tensors `made` and what `shared` nodes compute are read by others.

    A Shape that one of the `inputs` has too may be read off that, and one that only serves the inside may
    vanish too.

    Raises:
        Refused: something else is.
    """
    for node in nodes.values():
        for tensor in node.outputs:
            if any(tensor is own for own in made):
                continue
            if tensor.name in outputs:
                raise Refused(f"the inner tensor {tensor.name!r} is {outputs[tensor.name]}")
            readers = (n for n in tensor.outputs if id(n) not in nodes and id(node) not in shared)
            reader = next((n for n in readers if not _reads_size(n, tensor, nodes, outputs, inputs)), None)
            if reader is not None:
                raise Refused(f"the inner tensor {tensor.name!r} is also read by {described(reader)} outside")


def twin_in_size(tensor: gs.Tensor, reader: gs.Node, inputs: Sequence[gs.Tensor]) -> gs.Tensor | None:
    """One of `inputs` that has the shape of `tensor`, and does not depend on the `reader` of that shape; None if none has."""
    return next((other for other in inputs if same_shape(tensor, other) and not _depends(other, reader)), None)


def _depends(tensor: gs.Tensor, node: gs.Node) -> bool:
    seen: set[int] = set()
    stack = [tensor]
    while stack:
        maker = producer(stack.pop())
        if maker is not None and id(maker) not in seen:
            seen.add(id(maker))
            stack.extend(maker.inputs)
    return id(node) in seen


def _reads_size(
    reader: gs.Node, tensor: gs.Tensor, nodes: Mapping[int, gs.Node], outputs: Mapping[str, str], inputs: Sequence[gs.Tensor]
) -> bool:
    """Whether `reader` is a Shape of `tensor` that one of the inputs has too, or that leads nowhere but inside."""
    if not is_op(reader, "Shape"):
        return False
    if twin_in_size(tensor, reader, inputs) is not None:
        return True
    seen, frontier = {id(reader)}, [reader]
    while frontier and len(seen) <= MAX_NODES:
        for result in frontier.pop().outputs:
            if result.name in outputs:
                return False
            new = [node for node in result.outputs if id(node) not in nodes and id(node) not in seen]
            seen.update(id(node) for node in new)
            frontier.extend(new)
    return not frontier and len(seen) <= MAX_NODES
