"""The fused operator `AttentionalFusion`: what it computes, how it is written in standard ONNX, and its GPU kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aff_deploy.ops.body import Form, function_body
from aff_deploy.ops.operator import DOMAIN, DOMAIN_VERSION, TAKES_ALPHA, Variant, count_features, is_fusion

if TYPE_CHECKING:
    from aff_deploy.ops.modules import fuse_module

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "TAKES_ALPHA",
    "Form",
    "Variant",
    "count_features",
    "function_body",
    "fuse_module",
    "is_fusion",
]


def __getattr__(name: str) -> Any:
    # PyTorch is loaded only by whoever asks for what needs it.
    if name == "fuse_module":
        from aff_deploy.ops.modules import fuse_module

        return fuse_module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
