"""``aff-deploy build-engine``: engines by TensorRT-RTX, and what is refused before, during and after."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from aff_deploy.cli import main
from tests.cli.process import Run, error_line
from tests.networks import RECIPE, write_network
from tests.passes.attention import Attention

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

SHAPES = [
    word
    for bound, batch in (("min", 1), ("opt", 2), ("max", 4))
    for name in ("x", "y")
    for word in (f"--{bound}-shapes", f"{name}:{batch}x8x5x6")
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    onnx.save(Attention().build(), path)
    return path


def test_an_fp16_engine_is_built_proven_and_inspected(run: Run, model: Path, tmp_path: Path) -> None:
    ran = run("build-engine", "m.onnx", "-o", "m.engine", "--fp16", "--backend", "tensorrt-rtx", *SHAPES, "--json")
    assert ran.returncode == 0, ran.stderr
    facts = json.loads(ran.stdout)
    assert facts["precision"]["asked"] == facts["precision"]["proven"] == "fp16"
    assert facts["precision"]["proof"]["in_precision"] == facts["precision"]["proof"]["nodes"] == 4
    assert facts["onnx"]["file"] == "m.onnx"
    assert facts["checks"][0]["passed"] is True
    assert "rounded to float16" in facts["checks"][0]["on"]
    assert facts["profiles"][0]["max"] == {"x": [4, 8, 5, 6], "y": [4, 8, 5, 6]}
    assert {"convert", "validate", "build", "prove"} <= set(facts["seconds"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.engine", "m.engine.json", "m.onnx"]

    shown = run("inspect", "m.engine")
    assert shown.returncode == 0
    assert "fp16 asked, fp16 proven" in shown.stdout
    assert "intact" in shown.stdout
    assert json.loads(run("inspect", "m.engine", "--json").stdout)["onnx"] == "same"

    onnx.save(Attention().build(seed=5), model)
    assert "NOT LOADABLE" in run("inspect", "m.engine").stdout
    with open(tmp_path / "m.engine", "r+b") as file:
        file.truncate(facts["bytes"] - 100)
    assert f"{facts['bytes'] - 100} of {facts['bytes']} bytes" in run("inspect", "m.engine").stdout


def test_the_typed_model_is_kept_on_request(run: Run, model: Path, tmp_path: Path) -> None:
    ran = run("build-engine", "m.onnx", "-o", "m.engine", "--bf16", "--keep-typed", "--io", "fp32", *SHAPES)
    assert ran.returncode == 0, ran.stderr
    assert "bf16 engine by tensorrt-rtx" in ran.stdout
    assert "every tensor rounded to bfloat16" in ran.stdout
    assert (tmp_path / "m.engine.onnx").is_file()


def test_a_model_outside_the_tolerance_writes_nothing(run: Run, model: Path, tmp_path: Path) -> None:
    ran = run("build-engine", "m.onnx", "-o", "m.engine", "--fp16", "--rtol", 0, "--atol", 0, *SHAPES)
    assert "the fp16 model differs from ONNX Runtime" in error_line(ran, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_int8_needs_data_and_takes_an_npz(run: Run, model: Path, tmp_path: Path) -> None:
    assert "--calib" in error_line(run("build-engine", "m.onnx", "-o", "m.engine", "--int8", *SHAPES), 3)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", **{name: rng.normal(size=(8, 8, 5, 6)).astype(np.float32) for name in ("x", "y")})
    # Nothing outside the fusion could be int8, and what was asked for is what must be built.
    ran = run("build-engine", "m.onnx", "-o", "m.engine", "--int8", "--calib", "d.npz", *SHAPES)
    assert "nothing in the model can be quantised" in error_line(ran, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fp16", "--int8"], "--fp16 and --int8 are two precisions"),
        (["--timing-cache", "times"], "--timing-cache is not for TensorRT-RTX"),
        (["--compute-capability", "9.0"], "compute capability 9.0; it knows 7.5"),
        (["--weights", "w.pt"], "--weights goes with a network"),
        (["--input", "x:1x8x5x6"], "--input and --dynamic go with a network"),
        (["--min-shapes", "z:1x8x5x6"], "--min-shapes names no input 'z'"),
        (["--backend", "openvino"], "--backend"),
    ],
)
def test_wrong_usage_is_exit_2(run: Run, model: Path, words: list[str], message: str) -> None:
    assert message in error_line(run("build-engine", "m.onnx", "-o", "m.engine", *words), 2)


def test_a_backend_that_is_not_here_is_exit_4(run: Run, model: Path) -> None:
    line = error_line(run("build-engine", "m.onnx", "-o", "m.engine", "--backend", "tensorrt", *SHAPES), 4)
    assert "pip install 'aff-deploy[gpu]'" in line


def test_a_node_that_is_not_there_cannot_be_kept_wide(run: Run, model: Path) -> None:
    ran = run("build-engine", "m.onnx", "-o", "m.engine", "--fp16", "--keep-fp32", "nobody", *SHAPES)
    assert "nobody" in error_line(ran, ran.returncode)
    assert ran.returncode in (2, 3)


def built(folder: Path, table: str, *words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The JSON document of ``build-engine`` of a recipe that ends in `table`."""
    shapeless = "\n".join(line for line in RECIPE.splitlines() if not line.startswith(("min =", "opt =", "max =")))
    write_network(folder / "net", f"{shapeless}\n{table}")
    with pytest.raises(SystemExit) as ended:
        main(["build-engine", str(folder / "net"), "-o", str(folder / "m.engine"), "--json", *words])
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return {"exit": ended.value.code, **document}


ENGINE = '[engine]\nprecision = "bf16"\nio = "fp16"\nbackend = "tensorrt-rtx"\nkeep_fp32 = ["node_conv2d"]\n'


def test_a_recipe_says_what_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = built(tmp_path, ENGINE, capsys=capsys)
    assert (facts["exit"], facts["precision"]["asked"], facts["typed"]["io"]) == (0, "bf16", "fp16")
    assert facts["typed"]["kept_wide"][0]["name"] == "node_conv2d"
    assert facts["profiles"][0]["max"] == {"image": [32, 4, 6, 6]}
    assert facts["default_profiles"] is True


def test_the_command_line_goes_before_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = built(
        *(tmp_path, ENGINE, "--fp16", "--io", "fp32", "--keep-fp32", "node_conv2d_1", "--opt-shapes", "image:2x4x6x6"),
        capsys=capsys,
    )
    assert (facts["precision"]["asked"], facts["typed"]["io"], facts["default_profiles"]) == ("fp16", "fp32", False)
    assert facts["typed"]["kept_wide"][0]["name"] == "node_conv2d_1"
    assert facts["profiles"][0]["max"] == {"image": [2, 4, 6, 6]}


def test_a_recipe_that_asks_for_no_engine_gives_an_fp32_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = built(tmp_path, "", capsys=capsys)
    assert (facts["exit"], facts["precision"]["asked"]) == (0, "fp32")


def test_int8_of_a_recipe_without_data_is_told_the_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, Any] = built(tmp_path, '[engine]\nprecision = "int8"\n', capsys=capsys)
    assert facts["exit"] == facts["error"]["exit"] == 3
    assert "--calib" in facts["error"]["fix"]
