"""`aff_deploy` is what `__all__` says, and importing it costs nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import aff_deploy

SOURCE = Path(aff_deploy.__file__).read_text()


def test_all_is_what_is_exported() -> None:
    exported = {*aff_deploy._HOME, "__version__"}
    assert sorted(aff_deploy.__all__) == sorted(exported)
    assert len(set(aff_deploy.__all__)) == len(aff_deploy.__all__)
    assert dir(aff_deploy) == sorted(aff_deploy.__all__)


def test_every_name_is_there_and_has_a_docstring() -> None:
    for name in aff_deploy.__all__:
        value = getattr(aff_deploy, name)
        assert value.__doc__, name


def test_type_checkers_see_the_same_names() -> None:
    blocks = [node for node in ast.parse(SOURCE).body if isinstance(node, ast.If)]
    seen = {
        alias.name: statement.module.removeprefix("aff_deploy.")
        for block in blocks
        for statement in block.body
        if isinstance(statement, ast.ImportFrom) and statement.module
        for alias in statement.names
    }
    assert seen == aff_deploy._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(aff_deploy, "optimise")


def test_import_is_light() -> None:
    code = "import json, sys, aff_deploy; print(json.dumps(sorted(m.partition('.')[0] for m in sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "onnx", "onnxruntime", "numpy", "rich", "typer"}
    assert heavy & set(json.loads(ran.stdout)) == set()
