"""``optimize --convex`` and ``--inline``, and ``validate`` on what they write, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from aff_deploy.cli import main
from tests.passes.attention import AFF


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "in.onnx"
    onnx.save(AFF.build(), path)
    return path


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return int(end.value.code or 0)


def test_both_forms_together(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", "in.onnx", "-o", "out.onnx", "--convex", "--inline", "--verify") == 0
    said = capsys.readouterr().out
    assert "blends that keep a small x: 1" in said
    assert "verified after each pass" in said
    model = onnx.load("out.onnx")
    assert not model.functions
    assert all(node.name.startswith("w_1/") for node in model.graph.node)
    manifest = json.loads(Path("out.onnx.json").read_text())
    assert manifest["convex"] == ["w_1"]
    assert [done["name"] for done in manifest["passes"]][-2:] == ["make_convex", "inline_calls"]


def test_data_that_lose_x_ask_for_the_form(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The gate looks at x alone and is 1; the near miss is y as large as x, and data that nobody gave."""
    logits = "s = Constant<value_float: float = 90.0>()\nz_0 = Add(l, g)\nz = Add(z_0, s)"
    onnx.save(AFF.but(context="a = Mul(x, x)", logits=logits).build(), "in.onnx")
    words = ("optimize", "in.onnx", "-o", "out.onnx", "--verify", "--json")
    for y, asked in ((1e5, ["w_1"]), (1.0, [])):
        rng = np.random.default_rng(0)
        arrays = {name: scale * rng.normal(0, 1, (3, 8, 5, 6)) for name, scale in (("x", 1.0), ("y", y))}
        np.savez("data.npz", **{name: array.astype(np.float32) for name, array in arrays.items()})
        assert run(*words, "--data", "data.npz") == 0
        assert json.loads(capsys.readouterr().out)["convex"] == asked
    assert run(*words) == 0
    assert json.loads(capsys.readouterr().out)["convex"] == []


def test_json_has_them(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", "in.onnx", "-o", "out.onnx", "--convex", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert {"passes", "fusions", "rejected", "convex", "verified"} == found.keys()
    assert found["convex"] == ["w_1"]


def test_kernels_have_no_place_without_calls(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", "in.onnx", "-o", "out.onnx", "--plugin", "--inline") == 2
    assert "--plugin writes into the calls that --inline removes; leave one of them out" in capsys.readouterr().err
    assert not Path("out.onnx").exists()


def test_validate_reports_exactness(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("optimize", "in.onnx", "-o", "out.onnx", "--inline") == 0
    rng = np.random.default_rng(0)
    np.savez("data.npz", **{name: rng.normal(0, 1, (3, 8, 5, 6)).astype(np.float32) for name in "xy"})
    capsys.readouterr()
    words = ("validate", "out.onnx", "--against", "in.onnx", "--data", "data.npz")
    assert run(*words, "--json") == 0
    exact = json.loads(capsys.readouterr().out)["exact"]
    assert (exact["holds"], exact["samples"]) == (True, 3)
    assert run(*words) == 0
    assert "exact: yes: output 'out' is " in capsys.readouterr().out


def test_validate_says_where_the_reference_itself_is_far(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """X + 1e6 - 1e6 against x: the file is right, and what it is held against is not."""
    head = '<ir_version: 8, opset_import: ["" : 18]>\ng (float[n, 4] x) => (float[n, 4] y) <float k = {1e6}>'
    for name, body in (("far", "t = Add(x, k)\ny = Sub(t, k)"), ("right", "y = Identity(x)")):
        onnx.save(onnx.parser.parse_model(f"{head} {{ {body} }}"), f"{name}.onnx")
    assert run("validate", "right.onnx", "--against", "far.onnx") == 1
    said = capsys.readouterr().out
    assert "ONNX Runtime in float32 is itself 0.0" in said
    assert "the network is ill-conditioned" in said
