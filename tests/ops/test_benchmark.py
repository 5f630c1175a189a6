"""The GPU benchmark on a machine without a GPU: what it says there, and that its page and picture can be made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import torch

from benchmarks.fusion_gpu import begun, floors, has, keep, picture, table

ROOT = Path(__file__).parents[2]


def test_without_a_gpu_one_sentence_and_exit_code_4() -> None:
    command = [sys.executable, "benchmarks/fusion_gpu.py"]
    # An empty list hides the GPUs of a machine that has some.
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 4, done.stderr
    assert done.stdout == ""
    assert done.stderr.strip().splitlines() == ["error: this benchmark needs an NVIDIA GPU and a PyTorch built for CUDA"]


def test_page_and_picture() -> None:
    size = 32 * 256 * 56 * 56 * 2
    row = {"shape": [32, 256, 56, 56], "dtype": "float16", "layout": "linear", "r": 16, "ours_error": 1e-3}
    row |= {"eager_us": 400.0, "compiled_us": 200.0, "ours_us": 100.0, **floors(size, 100.0, 4.3e12)}
    assert 59 < row["floor_5T_us"] < 60
    assert 0.35 < row["share_3T"] < 0.36
    network = {"network": "aff_resnet50", "batch": 1, "dtype": "float16", "speedup": 1.5, "ours_error": 1e-3}
    network |= {"compiled_us": 3.0, "ours_us": 2.0}
    document = {"machine": "GPU", "copy_rate": 4.3e12, "fusions": [row, row], "networks": [network], "command": "c"}
    page = table({**document, "versions": {"torch": torch.__version__}})
    assert "over torch.compile: 2.00." in page
    assert len({line.count("|") for line in page.splitlines() if line.startswith(("| 32", "| N C"))}) == 1
    drawn = ElementTree.fromstring(picture([row, row]))
    assert len(drawn.findall("{http://www.w3.org/2000/svg}rect")) == 6


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    row = {"shape": [1, 64, 7, 7], "dtype": "float16", "layout": "linear", "r": 16, "ours_error": 1e-3}
    row |= {"eager_us": 4.0, "compiled_us": 2.0, "ours_us": 1.0, **floors(6272, 1.0, 4e12)}
    fresh = {"machine": "GPU", "versions": {"torch": "2"}, "command": "c"}
    assert begun(fresh, tmp_path)["fusions"] == []
    keep({**fresh, "copy_rate": 4e12, "fusions": [row], "networks": []}, tmp_path)
    again = begun(fresh, tmp_path)
    assert (again["fusions"], again["copy_rate"]) == ([row], 4e12)
    assert has(again["fusions"], r=16, shape=[1, 64, 7, 7])
    assert not has(again["fusions"], r=4, shape=[1, 64, 7, 7])
    assert begun({**fresh, "machine": "another"}, tmp_path)["fusions"] == []
    assert (tmp_path / "fusion_gpu.svg").exists()
