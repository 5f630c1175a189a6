"""The fused operator `AttentionalFusion`: what it computes, and how it is written in standard ONNX."""

from __future__ import annotations

from aff_deploy.ops.body import Form, function_body
from aff_deploy.ops.operator import DOMAIN, DOMAIN_VERSION, TAKES_ALPHA, Variant, is_fusion

__all__ = ["DOMAIN", "DOMAIN_VERSION", "TAKES_ALPHA", "Form", "Variant", "function_body", "is_fusion"]
