"""A deployment's manifest, and its page taken apart."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

HASH = "0123456789abcdef" * 4
MANIFEST: dict[str, Any] = {
    "format": 1,
    "name": "some_net",
    "description": "A network.",
    "created": "2026-01-01T00:00:00+00:00",
    "network": {
        "reference": "pkg.nets:build",
        "arguments": {"num_classes": 10},
        "parameters": 1234567,
        "weights": {"file": "weights.safetensors", "sha256": HASH},
        "export": {"opset": 18, "exporter": "dynamo"},
    },
    "inputs": [{"name": "image", "shape": ["batch", 1, 8, 8], "dtype": "float32"}],
    "outputs": [{"name": "logits", "shape": ["batch", 10], "dtype": "float32"}],
    "model": {"file": "model.onnx", "sha256": HASH[::-1], "bytes": 812345},
    "nodes": {"before": 123, "after": 33},
    "ops": {"before": {"Conv": 47, "Sigmoid": 6}, "after": {"Conv": 17, "AttentionalFusion": 7}},
    "passes": [{"name": "fold_batchnorm", "rewrites": 42, "seconds": 0.0123, "nodes": 33}],
    "fusions": [
        {
            **{"name": "stages.0.fusion", "kind": "iaff", "channels": 64, "inter_channels": 16, "scale": 2.0},
            **{"activation": "relu", "context": "sum", "branches": ["local", "global"], "share_global": True},
        }
    ],
    "rejected": [{"name": "sigmoid_9", "reason": "the global branch is not pooled"}],
    "validation": {
        "passed": True,
        "outputs": [
            {
                **{"name": "logits", "max_abs": 3.25e-6, "max_rel": 1.5e-4, "cosine": 0.99999999, "snr_db": 131.25},
                **{"argmax_agreement": 1.0, "scale": 16.0, "passed": True, "detail": ""},
            }
        ],
        "tolerance": {"atol": 1e-6, "rtol": 1e-4, "min_cosine": 0.99999},
        "samples": 376,
        "checks": [{"name": "permuted rows", "passed": True, "detail": ""}],
        "sources": [
            {"kind": "evaluation", "file": "evaluation.npz", "sha256": HASH, "samples": 360},
            {"kind": "seeded", "samples": 16},
        ],
    },
    "evaluation": {
        "samples": 360,
        "same_answers": 359,
        "correct": {"pytorch": 357, "file": 356},
        "accuracy": {"pytorch": 357 / 360, "file": 356 / 360, "recorded": 0.9917},
    },
    "engine": {
        **{"built": True, "file": "model.engine", "bytes": 2345678, "weights_bytes": 376512, "not_run": "there is no GPU"},
        **{"backend": "tensorrt-rtx", "library_version": "1.7.1", "compute_capabilities": ["8.0", "12.0+"]},
        "precision": {
            **{"asked": "fp16", "proven": "fp16"},
            "proof": {"precision": "fp16", "nodes": 40, "in_precision": 39, "read_from": "a listing"},
        },
        "typed": {"observed": "128 calibration samples", "kept_wide": [{"name": "the_mean", "reason": "adds up many"}]},
        "profiles": [{"min": {"image": [1, 1, 8, 8]}, "opt": {"image": [8, 1, 8, 8]}, "max": {"image": [32, 1, 8, 8]}}],
        "checks": [
            {
                **{"what": "typed ONNX", "on": "a CPU", "data": "evaluation data"},
                "outputs": [{"name": "logits", "max_abs": 0.0125, "scale": 16.0, "snr_db": 61.5}],
            }
        ],
    },
    "seconds": {"export": 4.25},
    "versions": {"python": "3.11.7", "aff-deploy": "0.1.0"},
    "platform": "Linux x86_64",
}


class Page(HTMLParser):
    """Text of the page, its tags, and whether they nest."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        assert not [key for key, _ in attrs if key.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)
