"""The fusion modules and the networks of the paper, in PyTorch."""

from __future__ import annotations

from aff_deploy.errors import MissingDependency

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as _error:
    if _error.name != "torch":
        raise
    raise MissingDependency("building a network needs PyTorch, which is not installed", extra="cpu") from None

# Not in __all__, whose lower-case names are networks.
from aff_deploy.nets.checkpoints import load_weights as load_weights
from aff_deploy.nets.cifar import (
    aff_resnet32,
    aff_resnext38_32x4d,
    aff_resnext47_32x4d,
    iaff_resnet32,
    iaff_resnext38_32x4d,
)
from aff_deploy.nets.digits import aff_resnet_digits, iaff_resnet_digits
from aff_deploy.nets.fpn import aff_fpn_resnet50
from aff_deploy.nets.fusion import AFF, MSCAM, iAFF
from aff_deploy.nets.inception import aff_inception
from aff_deploy.nets.resnet import (
    add_resnet50,
    add_resnext50_32x4d,
    aff_resnet50,
    aff_resnext50_32x4d,
    iaff_resnet50,
    iaff_resnext50_32x4d,
)

__all__ = [
    "AFF",
    "MSCAM",
    "add_resnet50",
    "add_resnext50_32x4d",
    "aff_fpn_resnet50",
    "aff_inception",
    "aff_resnet32",
    "aff_resnet50",
    "aff_resnet_digits",
    "aff_resnext38_32x4d",
    "aff_resnext47_32x4d",
    "aff_resnext50_32x4d",
    "iAFF",
    "iaff_resnet32",
    "iaff_resnet50",
    "iaff_resnet_digits",
    "iaff_resnext38_32x4d",
    "iaff_resnext50_32x4d",
]
