"""Every command on a network that the package has never seen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from aff_deploy.artifact import sha256
from aff_deploy.runtimes.backends import TENSORRT_RTX, is_installed
from tests.cli.process import Run, error_line, runner
from tests.networks import write_network


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network, its recipe, and what ``export`` and ``optimize`` make of it."""
    folder = tmp_path_factory.mktemp("house")
    write_network(folder)
    run = runner(folder)
    shape = ("--input", "image:1x4x6x6", "--dynamic", "image:0=batch")
    ran = run("export", "net.py:build", "-o", "raw.onnx", *shape, "--opset", "17", "--exporter", "torchscript")
    assert ran.returncode == 0, ran.stderr
    assert "image:batchx4x6x6:float32" in ran.stdout
    ran = run("optimize", "raw.onnx", "-o", "fused.onnx", "--verify", "--json")
    assert ran.returncode == 0, ran.stderr
    (folder / "optimize.json").write_text(ran.stdout)
    return folder


@pytest.fixture
def here(house: Path) -> Run:
    return runner(house)


def test_export_wrote_what_was_asked(house: Path) -> None:
    model = onnx.load(house / "raw.onnx")
    assert next(o.version for o in model.opset_import if not o.domain) == 17
    assert [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 4, 6, 6]
    manifest = json.loads((house / "raw.onnx.json").read_text())
    assert manifest["sha256"] == sha256(house / "raw.onnx")
    assert (manifest["exporter"], manifest["opset"], manifest["network"]) == ("torchscript", 17, "net.py:build")


def test_export_takes_settings_from_a_recipe_and_weights_from_a_file(house: Path, here: Run) -> None:
    import torch

    from aff_deploy.nets.resolve import resolve_network

    state = resolve_network(f"{house}/net.py:build").module.state_dict()
    torch.save({name: t * 0.5 if t.is_floating_point() else t for name, t in state.items()}, house / "half.pt")
    ran = here("export", "recipe.toml", "-o", "made/recipe.onnx", "--weights", "half.pt")
    assert ran.returncode == 0, ran.stderr
    assert "weights from half.pt" in ran.stdout
    differs = here("validate", "made/recipe.onnx", "--against", "recipe.toml", "--json")
    assert differs.returncode == 1
    assert here("validate", "made/recipe.onnx", "--against", "recipe.toml", "--weights", "half.pt").returncode == 0


def test_optimize_json_is_the_contract(house: Path) -> None:
    found = json.loads((house / "optimize.json").read_text())
    assert {"passes", "fusions", "rejected"} <= found.keys()
    assert {"name", "rewrites", "seconds", "nodes"} == found["passes"][0].keys()
    assert [(site["kind"], site["channels"], site["inter_channels"]) for site in found["fusions"]] == [("aff", 8, 4)]
    manifest = json.loads((house / "fused.onnx.json").read_text())
    assert manifest["source"]["sha256"] == sha256(house / "raw.onnx")
    assert manifest["verified"] is True


def test_optimize_for_people_and_no_fuse(house: Path, here: Run) -> None:
    ran = here("optimize", "raw.onnx", "-o", "plain.onnx", "--no-fuse")
    assert ran.returncode == 0
    assert "fusions: none" in ran.stdout
    assert all(node.op_type != "AttentionalFusion" for node in onnx.load(house / "plain.onnx").graph.node)


def test_inspect(here: Run) -> None:
    ran = here("inspect", "fused.onnx", "--json")
    assert (ran.returncode, ran.stderr) == (0, "")
    found = json.loads(ran.stdout)
    assert found["ops"]["AttentionalFusion"] == 1
    assert [site["kind"] for site in found["fusions"]] == ["aff"]
    assert [value["name"] for value in found["inputs"]] == ["image"]
    assert found["manifest"]["source"]["file"] == "raw.onnx"
    text = here("inspect", "raw.onnx").stdout
    for part in ("image", "batchx4x6x6", "operators:", "Conv", "manifest: made from net.py:build"):
        assert part in text


def test_validate_passes_and_its_json_is_the_contract(house: Path, here: Run) -> None:
    np.savez(house / "data.npz", image=np.random.default_rng(0).standard_normal((5, 4, 6, 6), np.float32))
    ran = here("validate", "fused.onnx", "--against", "net.py:build", "--data", "data.npz", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["passed"] is True
    assert found["samples"] == 5
    names = {"name", "max_abs", "max_rel", "cosine", "snr_db", "argmax_agreement"}
    assert names <= found["outputs"][0].keys()
    assert set(found["tolerance"]) == {"atol", "rtol", "min_cosine"}
    text = here("validate", "fused.onnx", "--against", "raw.onnx", "--atol", "1e-3", "--rtol", "0", "--min-cosine", "0.5")
    assert text.returncode == 0
    assert "atol 0.001, rtol 0, min cosine 0.5" in text.stdout


def test_validate_fails_with_exit_1_and_says_where(house: Path, here: Run) -> None:
    model = onnx.load(house / "raw.onnx")
    weights = next(tensor for tensor in model.graph.initializer if list(tensor.dims) in ([3, 8], [8, 3]))
    changed = numpy_helper.to_array(weights).copy()
    changed[0, 0] += 1.0
    weights.CopyFrom(numpy_helper.from_array(changed, weights.name))
    onnx.save(model, house / "changed.onnx")
    ran = here("validate", "changed.onnx", "--against", "raw.onnx")
    assert ran.returncode == 1
    assert "FAILED" in ran.stdout
    assert model.graph.output[0].name in ran.stdout
    assert "Traceback" not in ran.stderr


def test_validate_refuses_what_does_not_fit(house: Path, here: Run) -> None:
    np.savez(house / "wrong.npz", image=np.zeros((2, 4, 5, 6), np.float32))
    assert "4x6x6" in error_line(here("validate", "fused.onnx", "--against", "raw.onnx", "--data", "wrong.npz"), 3)
    assert "--weights" in error_line(here("validate", "fused.onnx", "--against", "raw.onnx", "--weights", "x.pt"), 2)


def test_deploy(house: Path, here: Run) -> None:
    ran = here("deploy", "recipe.toml", "-o", "out")
    assert ran.returncode == 0, ran.stderr
    engine = ["model.engine", "model.engine.json"] if is_installed(TENSORRT_RTX) else []
    assert sorted(path.name for path in (house / "out").iterdir()) == [
        *("manifest.json", *engine, "model.onnx", "model.onnx.json", "recipe.toml", "report.html"),
    ]
    assert ("model.engine, fp16 proven" in ran.stdout) == bool(engine)
    assert "1 aff; 0 refused" in ran.stdout
    assert "report    out/report.html" in ran.stdout
    assert "compare with eager PyTorch" in ran.stderr
    assert not [path for path in house.iterdir() if path.name.startswith(".")]


def test_a_module_in_the_current_folder_is_found(here: Run) -> None:
    assert "nothing says what inputs" in error_line(here("export", "net:build", "-o", "x.onnx"), 2)
