"""What a person may call a network, and what a wrong word gets to hear."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from aff_deploy import nets
from aff_deploy.errors import NetworkError, RecipeError, WeightsError
from aff_deploy.nets.resolve import resolve_network
from aff_deploy.recipe import bundled_recipes, load_recipe
from aff_deploy.spec import TensorSpec

CODE = """
from torch import nn

def build(width=4, bias=True):
    return nn.Sequential(nn.Linear(3, width, bias=bias), nn.BatchNorm1d(width), nn.Dropout())

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 4)

ready = nn.Linear(3, 4)
number = 7

class holder:
    inner = staticmethod(build)

def needs(value):
    return build(value)

def fails():
    raise ValueError("the disk is upside down\\nsecond line")

def leaves():
    raise SystemExit(5)

def words():
    return {"not": "a module"}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a module ``custom_nets.py`` of this test's own."""
    (tmp_path / "custom_nets.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "custom_nets", raising=False)
    return tmp_path


def refusal(reference: str) -> str:
    with pytest.raises(NetworkError) as caught:
        resolve_network(reference)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    return str(caught.value)


@pytest.mark.parametrize("name", bundled_recipes())
def test_bundled_recipes_name_networks_that_exist(name: str) -> None:
    recipe = load_recipe(bundled_recipes()[name])
    assert recipe.name == name
    assert recipe.network == f"aff_deploy.nets:{name}"
    assert recipe.profile is not None
    assert recipe.inputs[0].is_dynamic
    assert name in nets.__all__


def test_bundled_network_without_weights() -> None:
    network = resolve_network("aff_inception")
    assert network.name == "aff_inception"
    assert network.recipe is not None
    assert network.weights is None
    assert network.inputs == network.recipe.inputs


@pytest.mark.parametrize("name", ["aff_resnet_digits", "iaff_resnet_digits"])
def test_trained_networks(name: str) -> None:
    network = resolve_network(name)
    assert network.weights is not None
    stored = safetensors.torch.load_file(network.weights)
    assert all(torch.equal(value, stored[key]) for key, value in network.module.state_dict().items())
    assert network.inputs == (TensorSpec("input", ("batch", 1, 8, 8), example=(8, 1, 8, 8)),)


@pytest.mark.parametrize("reference", ["custom_nets:build", "custom_nets.py:build", "./custom_nets.py:holder.inner"])
def test_callables(folder: Path, reference: str) -> None:
    specs = (TensorSpec("x", (1, 3)),)
    network = resolve_network(reference, inputs=specs)
    assert isinstance(network.module, nn.Sequential)
    assert not any(module.training for module in network.module.modules())
    assert not any(parameter.requires_grad for parameter in network.module.parameters())
    assert network.inputs == specs
    assert network.recipe is None
    assert network.name in ("build", "inner")


@pytest.mark.parametrize("reference", ["custom_nets:Net", "custom_nets:ready"])
def test_classes_and_modules(folder: Path, reference: str) -> None:
    assert isinstance(resolve_network(reference).module, nn.Linear)


def test_the_current_folder_stays_off_the_path(folder: Path) -> None:
    before = list(sys.path)
    resolve_network("custom_nets:build")
    assert sys.path == before


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_mine.py").write_text("from torch import nn\n\ndef layer():\n    return nn.ReLU()\n")
    (tmp_path / "main_net.py").write_text("import neighbour_of_mine\n\nbuild = neighbour_of_mine.layer\n")
    assert isinstance(resolve_network(f"{tmp_path / 'main_net.py'}:build").module, nn.ReLU)


def test_initialisation_is_the_same_every_time(folder: Path) -> None:
    first = resolve_network("custom_nets:build").module.state_dict()
    state = torch.random.get_rng_state()
    second = resolve_network("custom_nets:build").module.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_weights_of_the_caller(folder: Path) -> None:
    filled = {"weight": torch.full((4, 3), 0.5), "bias": torch.zeros(4)}
    safetensors.torch.save_file(filled, folder / "w.safetensors")
    network = resolve_network("custom_nets:Net", weights=folder / "w.safetensors")
    assert torch.equal(network.module.state_dict()["weight"], filled["weight"])
    assert network.weights == folder / "w.safetensors"
    safetensors.torch.save_file({"other": torch.zeros(1)}, folder / "other.safetensors")
    with pytest.raises(WeightsError, match="2 missing"):
        resolve_network("custom_nets:Net", weights=folder / "other.safetensors")


def write_recipe(folder: Path, text: str = "") -> Path:
    path = folder / "recipe.toml"
    head = 'name = "mine"\nnetwork = "custom_nets.py:build"\n'
    tail = '[[inputs]]\nname = "x"\nshape = ["batch", 3]\n'
    path.write_text(head + textwrap.dedent(text) + tail)
    return path


def test_recipe_of_the_caller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(folder, "[arguments]\nwidth = 6\nbias = false\n")
    monkeypatch.chdir("/")
    network = resolve_network(str(path))
    assert network.name == "mine"
    assert network.module.state_dict()["0.weight"].shape == (6, 3)
    assert "0.bias" not in network.module.state_dict()
    assert network.inputs[0].shape == ("batch", 3)
    replaced = resolve_network(str(path), inputs=(TensorSpec("x", (5, 3)),))
    assert replaced.inputs[0].shape == (5, 3)


def test_recipe_weights_are_checked(folder: Path) -> None:
    safetensors.torch.save_file(resolve_network("custom_nets:build").module.state_dict(), folder / "w.safetensors")
    path = write_recipe(folder, f'[weights]\nfile = "w.safetensors"\nsha256 = "{"0" * 64}"\n')
    with pytest.raises(WeightsError, match="sha256"):
        resolve_network(str(path))


def test_recipe_with_wrong_arguments(folder: Path) -> None:
    assert "unexpected keyword argument 'breadth'" in refusal(str(write_recipe(folder, "[arguments]\nbreadth = 6\n")))


def test_missing_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        resolve_network(str(tmp_path / "recipe.toml"))


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("aff_resnet51", "did you mean aff_resnet50"),
        ("zzzzzzzz", "the bundled ones are add_resnet50"),
        ("custom_nets.py", "is not a network"),
        ("no_such_module_here:build", "there is no module 'no_such_module_here'"),
        ("custom_nets:bild", "did you mean build"),
        ("custom_nets:holder.none", "has no 'holder.none'"),
        ("custom_nets:number", "is a int"),
        ("custom_nets:needs", "missing 1 required positional argument: 'value'"),
        ("custom_nets:fails", "ValueError: the disk is upside down"),
        ("custom_nets:leaves", "SystemExit: 5"),
        ("custom_nets:words", "returned a dict, not a torch.nn.Module"),
        ("missing.py:build", "missing.py: no such file"),
        ("broken.py:build", "SyntaxError"),
        ("broken:build", "SyntaxError"),
        ("needy:build", "No module named 'package_that_is_not_there'"),
        ("custom_nets:", "cannot read network"),
        (":build", "cannot read network"),
        ("aff_deploy.nets:AFF", "missing 1 required positional argument: 'channels'"),
    ],
)
def test_refusals(folder: Path, reference: str, expected: str) -> None:
    (folder / "broken.py").write_text("def build(:\n")
    (folder / "needy.py").write_text("import package_that_is_not_there\n")
    assert expected in refusal(reference)


def test_empty_module_names_are_refused(folder: Path) -> None:
    for reference in ("..:build", ".custom_nets:build", "a..b:build"):
        assert "\n" not in refusal(reference)


def test_without_pytorch_the_missing_extra_is_named() -> None:
    code = """
import sys
sys.modules["torch"] = None
from aff_deploy.errors import MissingDependency
try:
    import aff_deploy.nets.resolve
except MissingDependency as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'aff-deploy[cpu]'" in done.stdout
