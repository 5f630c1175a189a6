"""The wheel works from an empty folder, with the models inside and nothing of the checkout in reach."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import aff_deploy

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    ran = subprocess.run(build, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    (found,) = out.glob("*.whl")
    return found


def test_contents(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in ("py.typed", "models/aff_resnet_digits/recipe.toml", "models/aff_resnet_digits/weights.safetensors"):
        assert f"aff_deploy/{name}" in names
    info = f"aff_deploy-{aff_deploy.__version__}.dist-info/"
    tops = {name.split("/")[0] + "/" for name in names}
    assert tops == {"aff_deploy/", info}
    metadata = zipfile.ZipFile(wheel).read(f"{info}METADATA").decode()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: <3.14,>=3.10" in metadata
    base = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not [line for line in base if "torch" in line or "onnxruntime" in line]
    assert wheel.stat().st_size < 6_000_000


def test_deploy_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(site)
    # -I hides the current folder and PYTHONPATH; the wheel goes before whatever this environment has installed.
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import aff_deploy; from aff_deploy.cli import main\n"
        f"assert aff_deploy.__file__.startswith({str(site)!r})\n"
        "main(['deploy', 'aff_resnet_digits', '-o', 'out'])"
    )
    ran = subprocess.run([sys.executable, "-I", "-c", code], cwd=empty, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    manifest = json.loads((empty / "out/manifest.json").read_text())
    assert manifest["evaluation"]["same_answers"] == 360
    assert [path.name for path in empty.iterdir()] == ["out"]
