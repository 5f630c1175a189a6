"""What the README says works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aff_deploy.cli import main
from aff_deploy.recipe import load_recipe
from aff_deploy.runtimes.backends import TENSORRT_RTX, is_installed
from tests.readme import README, ROOT, blocks, commands


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = blocks("python")
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.startswith("6 fused; []")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits.onnx", "digits.onnx.json"]


def test_it_opens_with_the_two_commands() -> None:
    assert README.index("$ make deploy") < README.index("$ make test") < README.index("## Install")


def test_its_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^\$ make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile


@pytest.mark.skipif(not is_installed(TENSORRT_RTX), reason="TensorRT-RTX is not installed")
def test_a_newcomer_who_follows_it_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (network,), (recipe,) = blocks("py"), blocks("toml")
    (tmp_path / "my_nets.py").write_text(network)
    (tmp_path / "recipe.toml").write_text(recipe)
    monkeypatch.chdir(tmp_path)
    assert load_recipe(tmp_path).engine.enabled
    ran = []
    for words in commands():
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 0, words
        ran.append(words[0])
    assert ran == ["export", "optimize", "validate", "build-engine", "deploy", "inspect"]
    for made in ("net.onnx", "fused.onnx", "net.engine", "out/model.onnx", "out/model.engine", "out/report.html"):
        assert (tmp_path / made).is_file()


def test_it_claims_no_index() -> None:
    assert "on no index" in README
    for line in re.findall(r"pip install[^`\n]*", README):
        assert "." in line or "[" in line, line
    assert not re.search(r"^\$ pip install '?aff-deploy", README, re.MULTILINE)
