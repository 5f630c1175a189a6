"""Tiny networks that tests reach as ``file.py:callable``, and recipes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import nn

from aff_deploy.export import export_onnx
from aff_deploy.spec import TensorSpec

RECIPE = """
name = "tiny"
description = "Two inputs fused <once>."
network = "net.py:build"
[[inputs]]
name = "image"
shape = ["batch", 4, 6, 6]
min = [1, 4, 6, 6]
opt = [2, 4, 6, 6]
max = [16, 4, 6, 6]
"""

SOURCE = """
import torch
from torch import nn
from aff_deploy.nets import AFF

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.skip = nn.Conv2d(4, 8, 1)
        self.fuse = AFF(8, r=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.fuse(self.conv(x), self.skip(x)).mean((2, 3)))

def build():
    torch.manual_seed(0)
    return Net()

def not_a_module():
    return 3

class Failing(nn.Module):
    def forward(self, x):
        raise ValueError("no forward today")
"""


_EXPORTS: dict[tuple[object, ...], ModelProto] = {}


def export_once(
    module: nn.Module, inputs: Sequence[TensorSpec], *, data: Sequence[Mapping[str, Any]] = (), **options: Any
) -> ModelProto:
    """What `export_onnx` gives; the same network of the package, with the same options and data, is exported once."""
    if not type(module).__module__.startswith("aff_deploy."):
        return export_onnx(module, inputs, data=data, **options)
    plain = [
        {name: value for name, value in vars(part).items() if isinstance(value, (int, float, str))} for part in module.modules()
    ]
    weights = sha256(b"".join(value.numpy().tobytes() for value in module.state_dict().values()))
    samples = tuple((name, array.tobytes()) for batch in data for name, array in batch.items())
    key = (repr(module), repr(plain), weights.digest(), samples, tuple(inputs), *sorted(options.items()))
    if key not in _EXPORTS:
        _EXPORTS[key] = export_onnx(module, inputs, data=data, **options)
    model = ModelProto()
    model.CopyFrom(_EXPORTS[key])
    return model


def write_network(folder: Path, recipe: str = RECIPE) -> Path:
    """``net.py`` and ``recipe.toml`` in `folder`; returns the recipe's path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "net.py").write_text(SOURCE, encoding="utf-8")
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    return folder / "recipe.toml"


class Does(nn.Module):
    """A network that calls a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)
