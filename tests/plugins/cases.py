"""Case files for `plugins/tests/plugin_host.cpp`: fields, tensors, and what the reference makes of them.

    python -m tests.plugins.cases FOLDER

writes some for a machine with a GPU. Needs Triton, to compile the kernels, and no GPU.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from aff_deploy.ops import DOMAIN, DOMAIN_VERSION, Variant
from aff_deploy.ops.reference import attentional_fusion
from aff_deploy.passes.functions import attributes
from aff_deploy.passes.kernels import attach_kernels

Array = NDArray[Any]
Values = dict[str, Any]

FIELDS = {
    "kernels_contract": "int32",
    "kernels_branches": "int32",
    "kernels_blend": "int32",
    "context_channels": "int32",
    "channels": "int32",
    "inter_channels": "int32",
    "scale": "float32",
    "context": "string",
    "activation": "string",
    "gate": "string",
    "kernels_table": "int32",
    "kernels_text": "string",
}
"""What the library's creators ask for, and how the ONNX parser passes it on."""

_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
_ONNX = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
_TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}
"""Of the largest value that the reference gives: what the kernels are held to."""


PLAIN = Variant()


@dataclass(frozen=True)
class Case:
    """One call of the plugin; an explicit context has `context_channels`. Dynamic, the model does not say height and width."""

    variant: Variant = PLAIN
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    channels_last: bool = False
    images: int = 2
    spatial: tuple[int, int] = (9, 7)
    channels: int = 64
    context_channels: int = 40
    inter: int = 12
    scale: float = 2.0
    dynamic: bool = False

    @property
    def name(self) -> str:
        """A file's name."""
        sizes = "x".join(map(str, (self.images, self.channels, *self.spatial)))
        return f"{self.variant.op_type}_{self.dtype}_{'last' if self.channels_last else 'linear'}_{sizes}_{self.inter}"


def cases() -> tuple[Case, ...]:
    """Every type and layout, every kind of call, and sizes that fill no block."""
    plain = Case()
    kinds = [
        Variant(context="explicit", activation="Silu"),
        Variant(context="self", blend=False),
        Variant(branches=("local",), gate="HardSigmoid"),
        Variant(branches=("global",)),
    ]
    made = [replace(plain, dtype=d, channels_last=last) for d in _NUMPY for last in (False, True)]  # type: ignore[arg-type]
    made += [replace(plain, variant=variant, dtype="float16") for variant in kinds]
    made += [
        replace(plain, images=3, spatial=(13, 5), channels=50, inter=7),
        replace(plain, images=1, spatial=(1, 1), dynamic=True),
    ]
    return (*made, replace(plain, dtype="float16", images=8, spatial=(56, 56), channels=256, inter=64))


def inputs_of(case: Case, seed: int = 0) -> dict[str, Array]:
    """Seeded values of the operator's inputs, in the case's type."""
    generator = np.random.default_rng(seed)
    context = case.context_channels if case.variant.context == "explicit" else case.channels
    shapes: dict[str, tuple[int, ...]] = {
        "x": (case.images, case.channels, *case.spatial),
        "y": (case.images, case.channels, *case.spatial),
        "a": (case.images, context, *case.spatial),
        "w1": (case.inter, context, 1, 1),
        "b1": (case.inter,),
        "w2": (case.channels, case.inter, 1, 1),
        "b2": (case.channels,),
    }
    made = {}
    for name in case.variant.inputs:
        shape = shapes[name.split("_")[-1]]
        spread = np.sqrt(shape[1]) if name.endswith(("w1", "w2")) else 1.0
        made[name] = (generator.normal(size=shape) / spread).astype(_NUMPY[case.dtype])
    return made


def model_of(case: Case, inputs: dict[str, Array]) -> ModelProto:
    """A model of the one call, as the passes write it before kernels are attached."""
    variant = case.variant
    said: Values = {
        "site": "fusion",
        "context": variant.context,
        "branches": list(variant.branches),
        "activation": variant.activation,
        "gate": variant.gate,
        "scale": case.scale,
        "channels": case.channels,
        "inter_channels": case.inter,
    }
    node = helper.make_node(variant.op_type, list(variant.inputs), ["out"], name="fusion", domain=DOMAIN, **said)
    kind = _ONNX[case.dtype]
    data = [name for name in variant.inputs if "_" not in name]
    weights = [
        helper.make_tensor(name, kind, inputs[name].shape, inputs[name].tobytes(), raw=True)
        for name in variant.inputs
        if name not in data
    ]
    spatial = ("height", "width") if case.dynamic else case.spatial
    graph = helper.make_graph(
        [node],
        "call",
        [helper.make_tensor_value_info(name, kind, (*inputs[name].shape[:2], *spatial)) for name in data],
        [helper.make_tensor_value_info("out", kind, (*inputs["x"].shape[:2], *spatial))],
        weights,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def attributes_of(case: Case, cache: Path, capabilities: tuple[int, ...] = (80,)) -> Values:
    """The attributes of the case's node that are fields of the plugin, kernels among them."""
    attached = attach_kernels(model_of(case, inputs_of(case)), capabilities=capabilities, cache=cache)
    if not attached.plugin:
        raise ValueError(f"{case.name} carries no kernels: {attached.native}")
    said = attributes(attached.model.graph.node[0])
    return {name: said[name] for name in FIELDS}


def write_case(case: Case, said: Values, path: Path) -> None:
    """Write a case as the host program reads it: lines of words, behind some of them bytes."""
    inputs = inputs_of(case)
    expected = attentional_fusion(case.variant, inputs, scale=case.scale)
    tolerance = _TOLERANCE[case.dtype] * float(np.abs(expected).max())
    parts = [f"plugin {case.variant.op_type}\n".encode(), f"tolerance {tolerance!r}\n".encode()]
    for name, kind in FIELDS.items():
        data = _field(said[name], kind)
        parts += [f"field {name} {kind} {len(data)}\n".encode(), data]
    for name in case.variant.inputs:
        parts += _tensor("input", case, inputs[name], inputs[name], weight="_" in name)
    parts += _tensor("output", case, inputs["x"], expected, weight=False)
    path.write_bytes(b"".join([*parts, b"end\n"]))


def _field(value: Any, kind: str) -> bytes:
    if kind == "string":
        return str(value).encode("ascii") + b"\0"
    return np.asarray(value, np.int32 if kind == "int32" else np.float32).tobytes()


def _tensor(word: str, case: Case, shaped: Array, values: Array, *, weight: bool) -> list[bytes]:
    last = case.channels_last and not weight
    layout = "LINEAR" if not last else "HWC" if case.dtype == "float32" else "HWC8"
    data = (values.transpose(0, 2, 3, 1) if last else values).tobytes()
    sizes = " ".join(map(str, (shaped.ndim, *shaped.shape)))
    return [f"{word} {case.dtype} {layout} {len(data)} {sizes}\n".encode(), data]


def main(folder: Path) -> None:
    """Write all cases, with kernels for every device from 8.0 on."""
    folder.mkdir(parents=True, exist_ok=True)
    for case in cases():
        write_case(case, attributes_of(case, folder / "cache"), folder / f"{case.name}.case")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="write case files for plugins/tests/plugin_host.cpp: some 80 MB")
    parser.add_argument("folder", type=Path, help="where to write them")
    main(parser.parse_args().folder)
