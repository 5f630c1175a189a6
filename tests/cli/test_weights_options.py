"""``--arguments`` and ``--key`` on every command that takes weights, and what is said around them."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from aff_deploy.nets import aff_resnet_digits, iaff_resnet_digits
from aff_deploy.onnx_file import save_onnx
from tests.cli.process import error_line, run_all
from tests.support import randomise_batchnorm

NETWORK = ["aff_deploy.nets:aff_resnet_digits", "--input", "x:2x1x8x8"]
SMALL = ["--arguments", "layers=[1,1,1]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two copies of small weights in ``w.pt``."""
    copies = []
    for seed in range(2):
        network = aff_resnet_digits(layers=(1, 1, 1))
        randomise_batchnorm(network, seed)
        copies.append(network.state_dict())
    torch.save({"model": copies[0], "model_ema": copies[1]}, tmp_path / "w.pt")
    return tmp_path


def relu() -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_a_network_of_other_arguments_is_exported_validated_and_refused(folder: Path) -> None:
    given = [*SMALL, "--weights", "w.pt"]
    against = ["--against", NETWORK[0]]
    export, same, other, seeded, wrong, onnx_file, unread = run_all(
        folder,
        [
            ["export", *NETWORK, "-o", "x.onnx", *given, "--key", "model_ema"],
            ["validate", "x.onnx", *against, *given, "--key", "model_ema"],
            ["validate", "x.onnx", *against, *given],
            ["validate", "x.onnx", *against, *SMALL],
            ["validate", "x.onnx", *against, *given, "--key", "ema"],
            ["validate", "x.onnx", "--against", "x.onnx", *SMALL],
            ["validate", "x.onnx", *against, "--arguments", "layers"],
        ],
    )
    assert export.returncode == 0, export.stderr
    assert json.loads((folder / "x.onnx.json").read_text())["arguments"] == {"layers": [1, 1, 1]}
    assert same.returncode == 0, same.stderr
    assert "no --weights" not in same.stderr
    assert other.returncode == 1
    assert "choose with --key NAME" in other.stderr
    assert "no --weights" not in other.stderr
    assert seeded.returncode == 1
    assert "the weights that its code made, no --weights being given" in seeded.stderr
    assert "has no state dict under 'ema'; it has model, model_ema" in error_line(wrong, 3)
    assert "--arguments and --key go with a network" in error_line(onnx_file, 2)
    assert "write KEY=VALUE" in error_line(unread, 2)
    # The batch is fixed: nothing was asked of its rows.
    rows = [line for line in same.stdout.splitlines() if "batch of 1" in line or "rows" in line]
    assert rows
    assert all("skipped" in line and " ok " not in line for line in rows)


def test_rows_that_were_checked_are_ok(folder: Path) -> None:
    onnx.save(relu(), folder / "m.onnx")
    (ran,) = run_all(folder, [["validate", "m.onnx", "--against", "m.onnx"]])
    assert ran.returncode == 0, ran.stderr
    assert "identical rows give identical outputs  ok" in ran.stdout
    assert "skipped" not in ran.stdout


def test_build_engine_takes_them_with_a_network_alone(folder: Path) -> None:
    (folder / "m.onnx").touch()
    line = ["build-engine", "m.onnx", "-o", "x.engine"]
    lines = [[*line, *SMALL], [*line, "--key", "ema"], [*line, "--weights", "w.pt"]]
    for ran, word in zip(run_all(folder, lines), ("--arguments", "--key", "--weights"), strict=True):
        assert f"{word} goes with a network; name it with --against" in error_line(ran, 2)


def test_what_deploy_wrote_says_which_recipe_it_is_of(folder: Path) -> None:
    save_onnx(relu(), folder / "model.onnx", {"source": {"recipe": "my_net", "exporter": "dynamo"}})
    (ran,) = run_all(folder, [["inspect", "model.onnx"]])
    assert "manifest: made from my_net, sha256" in ran.stdout


def test_sharing_that_nothing_tells_is_said_once(folder: Path) -> None:
    torch.save(iaff_resnet_digits(layers=(1, 1, 1)).state_dict(), folder / "i.pt")
    line = ["convert-weights", "i.pt", "o.safetensors", "--network", "iaff_resnet_digits", *SMALL]
    assumed, chosen = run_all(folder, [line, [*line, "--arguments", "share_global=true"]])
    assert assumed.returncode == chosen.returncode == 0
    assert assumed.stdout.count("share_global=False was assumed") == 1
    assert "give --arguments share_global=true" in assumed.stdout
    assert "assumed" not in chosen.stdout
