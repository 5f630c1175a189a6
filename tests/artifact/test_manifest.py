"""Manifests are true, and what is none of ours is not taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aff_deploy.artifact import read_manifest, versions, write_manifest
from aff_deploy.errors import InputError


def test_a_stale_or_broken_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"one")
    assert read_manifest(path) is None
    write_manifest(path, {})
    path.write_bytes(b"two")
    with pytest.raises(InputError, match="not the file that its manifest describes"):
        read_manifest(path)
    for text in ("{", "[]", json.dumps("x"), "[" * 100_000, '{"sha256": NaN}', "9" * 5000):
        (tmp_path / "model.onnx.json").write_text(text)
        with pytest.raises(InputError, match="manifest"):
            read_manifest(path)


@pytest.mark.parametrize(
    "change",
    [
        {"source": "x"},
        {"source": {"file": 3}},
        {"network": 3},
        {"sha256": 3},
        {"file": None},
        {"companions": ["x"]},
        {"companions": {"x": 3}},
        {"versions": 3},
        {"format": 2},
    ],
)
def test_a_manifest_of_other_types_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"one")
    manifest = write_manifest(path, {"source": {"file": "x.onnx"}, "network": "n"})
    assert read_manifest(path) == manifest
    (tmp_path / "model.onnx.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(InputError, match="is not one that aff-deploy wrote"):
        read_manifest(path)


def test_versions_name_the_interpreter_and_the_package() -> None:
    assert {"python", "aff-deploy", "onnx", "numpy"} <= versions().keys()
