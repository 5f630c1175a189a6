"""The house has an order: a file imports only from files above it, and a framework only where it lives."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "aff_deploy"

ORDER = (
    *(
        "errors",
        "spec",
        "artifact",
        "recipe",
        "onnx_data",
        "onnx_propagation",
        "onnx_file",
        "engine_file",
        "nets",
        "ops",
        "runtimes",
        "validate",
        "verify",
        "export",
    ),
    *("passes", "precision", "engine", "evaluate", "report", "pipeline", "cli"),
)
# May import anything: the public names, and the entry of `python -m`.
FREE = ("__init__.py", "__main__.py")

# Where a package may be imported at run time.
HOMES = {
    "torch": ("nets/", "export/", "runtimes/pytorch.py", "runtimes/cuda.py", "ops/torch_op.py", "ops/modules.py"),
    "triton": ("ops/kernels.py", "ops/tiles.py", "ops/compile.py"),
    "onnxscript": ("export/",),
    "onnxruntime": (),
    "PIL": ("runtimes/images.py",),
    "onnx_graphsurgeon": ("passes/",),
    "typer": ("cli/",),
    "rich": ("cli/",),
    "click": (),
    "tomli_w": ("recipe/",),
}

FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if "models" not in path.parts)


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """Every imported module (dotted; submodules of ours spelt out) and whether only type checkers see the import."""
    tree = ast.parse(source)
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in hidden) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the layer"
            yield node.module or "", id(node) in hidden
            if node.module == "aff_deploy":
                yield from ((f"aff_deploy.{alias.name}", id(node) in hidden) for alias in node.names)


def unit(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def complaints(path: str, source: str) -> list[str]:
    found = []
    for module, hidden in imports(source):
        head, _, rest = module.partition(".")
        if head == "aff_deploy" and rest and rest != "__version__":
            target = rest.split(".")[0]
            if path not in FREE and ORDER.index(target) > ORDER.index(unit(path)):
                found.append(f"{path} imports {module}, which lies below it")
        elif head in HOMES and not hidden and not path.startswith(HOMES[head] or ("never",)):
            found.append(f"{path} imports {module}, which belongs in {HOMES[head]}")
    return found


@pytest.mark.parametrize("path", FILES)
def test_imports_only_from_above(path: str) -> None:
    assert complaints(path, (PACKAGE / path).read_text()) == []


def test_every_file_has_its_place() -> None:
    assert {unit(path) for path in FILES} - {name.removesuffix(".py") for name in FREE} == set(ORDER)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("spec.py", "from aff_deploy.passes import optimize"),
        ("spec.py", "from aff_deploy import passes"),
        ("passes/match.py", "def f():\n    import torch.nn"),
        ("validate/metrics.py", "import onnxruntime"),
        ("cli/main.py", "import click"),
    ],
)
def test_the_rule_sees_a_breach(path: str, source: str) -> None:
    assert len(complaints(path, source)) == 1


def test_type_checkers_may_see_frameworks_anywhere() -> None:
    assert complaints("spec.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch") == []


def test_files_stay_small() -> None:
    sizes = {path: len((PACKAGE / path).read_text().splitlines()) for path in FILES}
    assert {path: size for path, size in sizes.items() if size > 300} == {}
