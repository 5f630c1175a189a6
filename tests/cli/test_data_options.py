"""--data, --range, --scale, --mean and --std, which four commands share."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.cli.process import error_line, run_all

SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        return torch.relu(self.conv(x))

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 4)

    def forward(self, ids):
        return self.table(ids)

def build():
    torch.manual_seed(0)
    return Net()
"""


def test_data_is_given_the_same_way_everywhere(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "photos").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 8, 3)).astype(np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "photos" / f"{i}.png")
    np.savez(tmp_path / "raw.npz", x=np.moveaxis(pixels[:, :8], -1, 1))
    inputs = ["--input", "x:1x3x8x8", "--dynamic", "x:0=batch"]
    table = ["export", "net.py:Table", "-o", "ids.onnx", "--input", "ids:1x5:int64", "--dynamic", "ids:0=batch"]
    exported, optimised, validated, raw, unknown, said, wrong, loose, unread, unverified = run_all(
        tmp_path,
        [
            ["export", "net.py:build", "-o", "net.onnx", *inputs, "--data", "photos"],
            ["optimize", "net.onnx", "-o", "o.onnx", "--verify", "--data", "photos"],
            ["validate", "o.onnx", "--against", "net.py:build", "--data", "photos", "--mean", "0.5", "--json"],
            ["validate", "o.onnx", "--against", "net.py:build", "--data", "raw.npz", "--scale", "0.01", "--json"],
            table,
            [*table, "--range", "ids:0:49"],
            [*table, "--range", "ids:0:50"],
            ["validate", "o.onnx", "--against", "net.py:build", "--mean", "0.5"],
            ["validate", "o.onnx", "--against", "net.py:build", "--data", "raw.npz", "--std", "0"],
            ["optimize", "net.onnx", "-o", "o.onnx", "--range", "x:0:1"],
        ],
    )
    assumed = "6 of the 6 images in photos, taken as RGB 8x8, divided by 255"
    assert exported.returncode == 0, exported.stderr
    assert "equal to PyTorch at x 2x3x8x8; x 6x3x8x8; x 1x3x8x8; x 3x3x8x8" in exported.stdout
    assert assumed in exported.stdout
    assert assumed in json.loads((tmp_path / "net.onnx.json").read_text())["compared_on"]
    assert assumed in optimised.stdout.splitlines()[-1]
    found = json.loads(validated.stdout)
    assert (found["passed"], found["data"], found["samples"]) == (True, assumed, 6)
    assert json.loads(raw.stdout)["data"] == "6 samples of raw.npz"
    assert "'ids' from 0 to 2 alone: other values are not covered" in unknown.stdout
    assert said.returncode == 0, said.stderr
    assert "not covered" not in said.stdout
    assert "index out of range" in error_line(wrong, 3)
    assert "give --data too" in error_line(loose, 2)
    assert "cannot read --std '0'" in error_line(unread, 2)
    assert "give --verify too" in error_line(unverified, 2)
