"""Networks whose fusions run as one operator: MSCAM, AFF and iAFF of `aff_deploy.nets` replaced in place."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from aff_deploy.errors import NetworkError
from aff_deploy.nets import AFF, MSCAM, iAFF
from aff_deploy.ops.torch_op import attentional_fusion

Weights = tuple[Tensor, Tensor, Tensor, Tensor]
_KINDS = (MSCAM, AFF, iAFF)


class FusedAttention(nn.Module):
    """One call of the operator, or the two of an iAFF; its weights are buffers, BatchNorm folded in.

    Args:
        first, second: weights of the calls by branch; the second call attends to what the first gave.
        scale: the factor s of the only call; an iAFF has none.
        blend: whether there is a second input y.
    """

    def __init__(
        self, first: dict[str, Weights], second: dict[str, Weights] | None = None, scale: float = 1.0, blend: bool = True
    ) -> None:
        super().__init__()
        self.blend = blend
        self.branches = tuple("+".join(branches) for branches in (first, second) if branches)
        self.scale = scale
        for i, branches in enumerate(filter(None, (first, second))):
            for branch, tensors in branches.items():
                for part, tensor in zip(("w1", "b1", "w2", "b2"), tensors, strict=True):
                    self.register_buffer(f"{branch}{i}_{part}", tensor)

    def _weights(self, index: int, dtype: torch.dtype) -> list[Tensor]:
        names = [f"{branch}{index}_{part}" for branch in self.branches[index].split("+") for part in ("w1", "b1", "w2", "b2")]
        weights = [cast("Tensor", getattr(self, name)) for name in names]
        # Under autocast x may be narrower than the weights.
        return [weight if weight.dtype == dtype else weight.to(dtype) for weight in weights]

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        if (y is not None) != self.blend:
            raise TypeError(f"this fusion takes {'two inputs' if self.blend else 'one input'}")
        context = "self" if y is None else "sum"
        if y is not None and y.dtype != x.dtype:
            wider = torch.promote_types(x.dtype, y.dtype)
            x, y = x.to(wider), y.to(wider)
        scale = self.scale if len(self.branches) == 1 else 1.0
        out = attentional_fusion(x, y, None, self._weights(0, x.dtype), context, self.branches[0], "Relu", "Sigmoid", scale)
        if len(self.branches) == 2:
            second = self._weights(1, x.dtype)
            out = attentional_fusion(x, y, out, second, "explicit", self.branches[1], "Relu", "Sigmoid", 1.0)
        return cast("Tensor", out)

    def extra_repr(self) -> str:
        return f"{' then '.join(self.branches)}, scale={self.scale:g}"


def fuse_module(net: nn.Module) -> nn.Module:
    """Replace every MSCAM, AFF and iAFF of `net` by the fused operator, in place.

    A module that stands in several places is replaced by one module in all of them. The weights are
    copies: load a checkpoint first, since what is changed or loaded afterwards does not reach the new
    modules. Other classes, and those derived from these, are not looked at; `optimize` fuses them in an ONNX file.

    Args:
        net: a network in eval mode, or one of these modules itself.

    Returns:
        `net`, or what replaces it where it is such a module itself.

    Raises:
        NetworkError: there is no such module, one is in training mode, has hooks, or is not as
            `aff_deploy.nets` builds it. The network is then as it was.
    """
    found = [(name, module) for name, module in net.named_modules(remove_duplicate=False) if type(module) in _KINDS]
    if not found:
        raise NetworkError(
            "there is no MSCAM, AFF or iAFF of aff_deploy.nets to replace",
            fix="export the network and fuse the file: aff-deploy export, aff-deploy optimize",
        )
    made = {module: _fused(module, name or type(module).__name__).eval() for name, module in found}
    for name, module in found:
        if not name:
            return made[module]
        parent, _, child = name.rpartition(".")
        setattr(net.get_submodule(parent), child, made[module])
    return net


def _check(module: nn.Module, name: str) -> None:
    """Raises NetworkError for what would be lost without a word."""
    for part in module.modules():
        if part.training:
            raise NetworkError(f"fusion {name!r} is in training mode", fix="call net.eval() first")
        if "forward" in vars(part):
            raise NetworkError(f"fusion {name!r} has a forward of its own", fix="leave its class's in place")
        hooks = (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks)
        if any(hooks):
            raise NetworkError(f"fusion {name!r} has hooks, which would no longer be called", fix="remove them first")


@torch.no_grad()
def _fused(module: nn.Module, name: str) -> FusedAttention:
    _check(module, name)
    if isinstance(module, MSCAM):
        named = [(branch.split("_")[0], module.get_submodule(branch)) for branch in module.branches]
        found = [(kind, _folded(branch, name, kind)) for kind, branch in named]
        kinds = {kind: [weights for other, weights in found if other == kind] for kind in ("local", "global")}
        return FusedAttention({kind: _stacked(weights) for kind, weights in kinds.items() if weights}, blend=False)
    pair = {
        "local": _folded(module.get_submodule("local_att"), name, "local"),
        "global": _folded(module.get_submodule("global_att"), name, "global"),
    }
    if isinstance(module, AFF):
        return FusedAttention(pair, scale=module.scale)
    assert isinstance(module, iAFF)
    second = pair["global"] if module.share_global else _folded(module.get_submodule("global_att2"), name, "global")
    return FusedAttention(pair, {"local": _folded(module.get_submodule("local_att2"), name, "local"), "global": second})


def _folded(branch: nn.Module, name: str, kind: str) -> Weights:
    """w1, b1, w2, b2 of a branch with its two BatchNorms folded in, in float64 and rounded once."""
    layers = list(branch.children())
    pools = [nn.AdaptiveAvgPool2d] * (kind == "global")
    kinds = [type(layer) for layer in layers]
    if kinds != [*pools, nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Conv2d, nn.BatchNorm2d]:
        raise NetworkError(
            f"fusion {name!r} has a {kind} branch of {', '.join(one.__name__ for one in kinds)}",
            fix="export the network and fuse the file: aff-deploy optimize knows more layers",
        )
    if pools and cast("nn.AdaptiveAvgPool2d", layers[0]).output_size not in (1, (1, 1)):
        raise NetworkError(f"fusion {name!r} does not pool to one position", fix="leave it as it was built")
    first, norm, _, second, last = layers[len(pools) :]
    return (*_fold(cast("nn.Conv2d", first), norm, name), *_fold(cast("nn.Conv2d", second), last, name))


def _fold(conv: nn.Conv2d, norm: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    assert isinstance(norm, nn.BatchNorm2d)
    plain = (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)
    tensors = [*conv.parameters(), *norm.parameters()]
    if not plain or any(tensor.dtype != conv.weight.dtype for tensor in tensors):
        raise NetworkError(f"fusion {name!r} has a convolution that is no 1x1 one in one type", fix="leave it as it was built")
    if norm.running_mean is None or norm.running_var is None:
        raise NetworkError(f"fusion {name!r} normalises with the statistics of each batch", fix="track running statistics")
    weight = conv.weight.double().flatten(1)
    bias = torch.zeros_like(weight[:, 0]) if conv.bias is None else conv.bias.double()
    gain = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        gain = gain * norm.weight.double()
    bias = (bias - norm.running_mean.double()) * gain
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    return (weight * gain[:, None]).to(conv.weight.dtype), bias.to(conv.weight.dtype)


def _stacked(branches: list[Weights]) -> Weights:
    """Branches of one kind as one: their inner channels side by side, which is exactly their sum."""
    w1, b1, w2, b2 = zip(*branches, strict=True)
    return torch.cat(w1), torch.cat(b1), torch.cat(w2, 1), torch.stack(b2).sum(0)
