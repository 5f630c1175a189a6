"""``inspect FOLDER``: what a deployment's folder holds, and whether it is still what was deployed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aff_deploy.cli.folder import describe_folder, print_folder
from aff_deploy.errors import InputError
from aff_deploy.pipeline import deploy
from aff_deploy.recipe import load_recipe
from tests.networks import write_network


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployment")
    return deploy(load_recipe(write_network(folder / "net")), folder / "out").folder


@pytest.fixture
def folder(deployed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(deployed, tmp_path / "out"))


def states(document: dict[str, Any]) -> dict[str, str]:
    return {file["file"]: file["state"] for file in document["files"]}


def test_it_is_as_deployed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = describe_folder(folder)
    json.dumps(document, allow_nan=False)
    assert document["problem"] is None
    assert set(states(document).values()) == {"intact"}
    assert document["verdicts"][0]["state"] == "passed"
    print_folder(folder, document)
    said = capsys.readouterr().out
    assert "deployment of tiny" in said
    assert "model.onnx" in said
    assert document["headline"] in said
    assert "NOT AS DEPLOYED" not in said


@pytest.mark.parametrize("change", ["altered", "missing"])
def test_a_file_that_is_not_the_one_that_was_deployed(change: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if change == "missing":
        (folder / "model.onnx").unlink()
    else:
        (folder / "model.onnx").write_bytes(b"other")
    document = describe_folder(folder)
    assert states(document)["model.onnx"] == change
    assert document["problem"] == f"{folder}: model.onnx is {change}"
    print_folder(folder, document)
    assert f"NOT AS DEPLOYED: {document['problem']}; deploy it again" in capsys.readouterr().out


def test_an_engine_that_was_exchanged(folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (folder / "model.engine").write_bytes(b"other")
    assert "model.engine is altered" in describe_folder(folder)["problem"]
    (folder / "model.engine").unlink()
    assert "model.engine is missing" in describe_folder(folder)["problem"]


def manifests() -> Iterator[tuple[str, str]]:
    yield "no JSON", "{"
    yield "deep", "[" * 100_000
    yield "a list", "[]"
    yield "empty", "{}"
    yield "a number for a table", '{"model": 3, "validation": {}, "engine": {"built": false}}'
    yield "null", "null"
    file = {"file": "../model.onnx", "sha256": "0"}
    checked = {"outputs": [], "samples": 1, "passed": True}
    yield "a file elsewhere", json.dumps({"model": file, "validation": checked, "engine": {"built": False, "why": ""}})
    yield "too large", " " * (17 * 2**20)


@pytest.mark.parametrize(("name", "text"), list(manifests()), ids=lambda value: value[:12])
def test_a_manifest_of_another_kind(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError) as caught:
        describe_folder(tmp_path)
    assert "manifest.json" in caught.value.message
    assert caught.value.fix


def test_a_folder_that_is_no_deployment(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it has no manifest\.json; give a folder that aff-deploy deploy wrote"):
        describe_folder(tmp_path)
    (tmp_path / "m.onnx").touch()
    with pytest.raises(InputError, match=r"give a file in it, such as .*m\.onnx"):
        describe_folder(tmp_path)
