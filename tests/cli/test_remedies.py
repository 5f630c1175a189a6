"""Every remedy that a message names exists in the command that prints it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer

import aff_deploy
from aff_deploy.cli.main import app
from aff_deploy.cli.remedies import in_options_of
from aff_deploy.recipe import load_recipe
from aff_deploy.recipe.remedies import OPTION, WHOLE, in_keys_of
from aff_deploy.recipe.tables import read_toml
from aff_deploy.spec import Precision
from tests.networks import RECIPE, write_network

PACKAGE = Path(aff_deploy.__file__).parent
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OPTIONS = {name: [o for p in command.params for o in p.opts] + ["--help", "--debug"] for name, command in COMMANDS.items()}
KEY = re.compile(r"\[\[?(\w+)(?:\.(\w+))?\]\]?(?: (\w+))?")


def texts() -> Iterator[tuple[str, str]]:
    """Every text of the package, docstrings apart, that names an option, and where it stands."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        # What an f-string puts in is a value: it stands for one word.
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = ""
            if isinstance(node, ast.JoinedStr):
                whole = "".join(part.value if isinstance(part, ast.Constant) else "VALUE" for part in node.values)
                node.values = [ast.copy_location(ast.Constant(whole), node)]
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if OPTION.search(text) and " " in text and path.name not in ("style.py", "remedies.py"):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", text


TEXTS = list(texts())


def foreign(command: str, text: str) -> list[str]:
    """Options that `text` names and neither `command` nor the command line that it quotes has."""
    wrong = []
    for i, part in enumerate(WHOLE.split(text)):
        quoted = re.match(r"(?!pip )(?:aff-deploy )?([a-z-]+)", part) if i % 2 else None
        if i % 2 and quoted is None:
            continue  # pip has options of its own
        known = OPTIONS[quoted[1] if quoted else command]
        wrong += [option for option in OPTION.findall(part) if option not in known]
    return wrong


def test_the_texts_are_found() -> None:
    assert len(TEXTS) > 40
    assert any("--calib" in text for _, text in TEXTS)
    assert foreign("deploy", "keep nodes with --keep-fp32") == ["--keep-fp32"]
    assert foreign("deploy", "see aff-deploy optimize --verify") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_no_command_names_an_option_that_it_lacks(command: str, tmp_path: Path) -> None:
    recipe = load_recipe(write_network(tmp_path))
    for place, text in TEXTS:
        said = in_keys_of(recipe, text) if command == "deploy" else text
        assert foreign(command, in_options_of(command, said, OPTIONS)) == [], place


def test_what_a_recipe_can_say_is_told_in_its_keys(tmp_path: Path) -> None:
    recipe = load_recipe(write_network(tmp_path))
    int8 = replace(recipe, engine=replace(recipe.engine, precision=Precision.INT8))
    ways = "keep nodes in fp32 with --keep-fp32, give real data with --calib, or allow more with --rtol"
    assert in_keys_of(int8, ways) == (
        "keep nodes in fp32 with [engine] keep_fp32, give real data with [calibration] data, "
        "or allow more with [tolerance.int8] rtol"
    )
    assert in_keys_of(recipe, "use --fp16, or --backend tensorrt-rtx, which needs none") == (
        'use [engine] precision = "fp16", or [engine] backend = "tensorrt-rtx", which needs none'
    )
    assert in_keys_of(recipe, "export it again with --opset 18") == "export it again with [export] opset = 18"
    assert in_keys_of(recipe, "build with --arguments share_global=true") == "build with [arguments] share_global = true"
    whole = "see the model with: aff-deploy build-engine m.onnx --calib d.npz"
    assert in_keys_of(recipe, whole) == whole


def test_an_option_of_another_command_is_told_with_it() -> None:
    assert in_options_of("build-engine", "try --exporter dynamo", OPTIONS) == "try aff-deploy export --exporter dynamo"
    assert in_options_of("export", "try --exporter dynamo", OPTIONS) == "try --exporter dynamo"


def test_the_keys_exist(tmp_path: Path) -> None:
    recipe = load_recipe(write_network(tmp_path))
    every = " ; ".join(in_keys_of(recipe, text) for _, text in TEXTS)
    named = {match for match in KEY.findall(every) if match[0] in ("engine", "calibration", "tolerance", "export", "weights")}
    assert ("engine", "", "keep_fp32") in named
    (tmp_path / "images").mkdir()
    write_network(
        tmp_path,
        f"""{RECIPE}
[engine]
keep_fp32 = ["a"]
precision = "fp16"
enabled = true
backend = "tensorrt-rtx"
[calibration]
data = "images"
[tolerance.fp16]
rtol = 1
atol = 1
min_cosine = 0
[export]
opset = 18
exporter = "dynamo"
[weights]
file = "net.py"
key = "model"
""",
    )
    known = read_toml(tmp_path / "recipe.toml")
    load_recipe(tmp_path)
    for table, inner, key in named:
        there = known[table][inner] if inner else known[table]
        assert not key or key in there or key in ("in", "which", "or", "of", "table"), (table, key)
