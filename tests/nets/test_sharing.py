"""What is said of the second global branch, prefixes, and arguments: where people choose, and what they hear."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from aff_deploy import nets
from aff_deploy.errors import NetworkError, WeightsError
from aff_deploy.nets import iAFF, load_weights
from aff_deploy.nets.resolve import resolve_network
from aff_deploy.nets.saving import save_weights
from aff_deploy.recipe import load_recipe
from tests.nets.foreign import AUTHORS, Fused, load, same, trained
from tests.support import randomise_batchnorm


def without_second(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in network.state_dict().items() if "global_att2" not in name}


def test_a_file_without_the_second_branch_says_which_argument_it_needs(tmp_path: Path) -> None:
    source = trained("fusion", True)
    with pytest.raises(WeightsError) as caught:
        load(Fused(), without_second(source), tmp_path)
    assert "it has no global_att2" in str(caught.value)
    assert "--arguments share_global=true" in caught.value.fix
    with pytest.raises(WeightsError) as caught:  # More is missing: another network.
        load(Fused(), {name: value for name, value in without_second(source).items() if name != "conv1.bias"}, tmp_path)
    assert "share_global" not in str(caught.value)


def test_a_file_without_the_second_branch_is_not_said_to_have_one(tmp_path: Path) -> None:
    source, network = trained("fusion", True), Fused(share_global=True)
    loaded = load(network, without_second(source), tmp_path)
    assert loaded.share_global is True
    assert loaded.notes == ("share_global=True in 1 iAFF modules: the file has no global_att2",)
    assert same(network, source)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_missing_second_branch_is_never_run(tmp_path: Path, recorded: bool) -> None:
    """Whatever else the file claims: unfilled weights would be used."""
    import json

    import safetensors.torch

    tensors = without_second(trained("fusion", True))
    metadata = {"aff_deploy": json.dumps({"share_global": recorded})}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors", metadata)
    network = Fused(share_global=True)
    assert load_weights(network, tmp_path / "w.safetensors").share_global is True
    assert network.fusion_module.share_global is True


def test_what_the_person_says_goes_before_what_a_file_records(tmp_path: Path) -> None:
    source = Fused(share_global=False, seed=1)
    randomise_batchnorm(source, 0)
    path = save_weights(source, tmp_path / "w.safetensors", share_global=True).path
    network = Fused()
    assert load_weights(network, path).share_global is True
    network = Fused()
    loaded = load_weights(network, path, share_global=False)
    assert loaded.share_global is None
    assert loaded.notes == ("share_global=False as given, though the file records it, which means True",)
    assert same(network, source)
    assert load_weights(Fused(share_global=True), path, share_global=True).notes == ()


def test_an_argument_of_the_network_is_what_the_person_says(tmp_path: Path) -> None:
    source = nets.iaff_resnet_digits(layers=(1, 1, 1))
    path = save_weights(source, tmp_path / "w.safetensors", share_global=True).path
    given = {"layers": [1, 1, 1]}
    for arguments, expected in ((given, True), ({**given, "share_global": False}, False)):
        found = resolve_network("aff_deploy.nets:iaff_resnet_digits", weights=path, arguments=arguments)
        assert {module.share_global for module in found.module.modules() if isinstance(module, iAFF)} == {expected}


def test_a_counted_second_branch_is_told_only_where_the_network_ignores_it(tmp_path: Path) -> None:
    source = trained("fusion", False)
    assert load(Fused(share_global=False), source.state_dict(), tmp_path).notes == ()
    (note,) = load(Fused(share_global=True), source.state_dict(), tmp_path).notes
    assert "training ran global_att2, which this network does not use" in note
    assert note.endswith("give --arguments share_global=false")


@pytest.mark.parametrize("prefix", ["net.", "backbone.", "model.encoder.", "a.b.c."])
def test_a_prefix_of_every_name_is_left_out(tmp_path: Path, prefix: str) -> None:
    source, network = trained("fusion", False), Fused()
    loaded = load(network, {prefix + name: value for name, value in source.state_dict().items()}, tmp_path)
    assert loaded.notes[0] == f"every name begins with {prefix.removeprefix('model.')!r}, which was left out"
    assert same(network, source)


def test_a_prefix_stays_where_it_is_not_of_every_name_or_does_not_help(tmp_path: Path) -> None:
    state = {f"net.{name}": value for name, value in trained("fusion", False).state_dict().items()}
    with pytest.raises(WeightsError, match=r"1 unexpected \(loss\.weight\)|unexpected \(net\."):
        load(Fused(), {**state, "loss.weight": torch.ones(1)}, tmp_path)
    with pytest.raises(WeightsError, match=r"1 missing \(conv1\.bias\)"):
        load(Fused(), {name: value for name, value in state.items() if name != "net.conv1.bias"}, tmp_path)
    with pytest.raises(WeightsError, match=r"1 unexpected \(net\.other\)"):
        load(Fused(), {**state, "net.other": torch.ones(1)}, tmp_path)
    with pytest.raises(WeightsError, match=r"conv1\.weight has shape"):
        load(Fused(), {**state, "net.conv1.weight": torch.ones(1)}, tmp_path)
    # A network whose own names begin so.
    outer = nn.ModuleDict({"net": Fused()})
    assert "left out" not in "".join(load(outer, state, tmp_path).notes)


def test_a_wrong_shape_in_a_foreign_network_has_no_word_of_ours(tmp_path: Path) -> None:
    state = trained("fusion", False).state_dict()
    with pytest.raises(WeightsError) as caught:
        load(Fused(), {**state, "conv1.bias": torch.ones(3)}, tmp_path)
    assert "classes" not in str(caught.value)
    assert "the sizes that the checkpoint has" in caught.value.fix


# What a network may be called and given.


@pytest.mark.parametrize("name", ["iaff_resnet32", "iaff_resnext38_32x4d"])
def test_a_callable_without_a_recipe_is_hinted(name: str) -> None:
    with pytest.raises(NetworkError) as caught:
        resolve_network(name)
    assert f"aff_deploy.nets:{name}" in caught.value.fix
    with pytest.raises(NetworkError, match=f"aff_deploy.nets:{name}"):
        resolve_network(name + "x")


def test_an_argument_of_the_wrong_type_is_named() -> None:
    with pytest.raises(NetworkError, match="num_classes='ten'"):
        resolve_network("aff_resnet_digits", arguments={"num_classes": "ten"})


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("aff_resnet32", {"width": 0}),
        ("aff_resnext38_32x4d", {"groups": 0}),
        ("aff_resnext38_32x4d", {"width": 1, "group_width": 1}),
        ("iaff_resnext38_32x4d", {"width": 8, "groups": 3, "group_width": 12}),
    ],
)
def test_widths_that_make_no_network(name: str, arguments: dict[str, int]) -> None:
    with pytest.raises(NetworkError, match=r"width|groups"), torch.device("meta"):
        getattr(nets, name)(**arguments)


def test_a_module_takes_no_arguments(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\nready = nn.Linear(3, 4)\n")
    with pytest.raises(NetworkError, match="takes no arguments"):
        resolve_network(f"{tmp_path / 'net.py'}:ready", arguments={"bias": False})


def test_the_key_of_a_recipe(tmp_path: Path) -> None:
    plain, averaged = (nets.aff_resnet_digits(layers=(1, 1, 1)) for _ in range(2))
    torch.save({"model": plain.state_dict(), "model_ema": averaged.state_dict()}, tmp_path / "w.pt")
    torch.save({"model": plain.state_dict()}, tmp_path / "other.pt")
    text = 'name = "n"\nnetwork = "aff_deploy.nets:aff_resnet_digits"\n[arguments]\nlayers = [1, 1, 1]\n'
    text += '[[inputs]]\nname = "x"\nshape = [1, 1, 8, 8]\n[weights]\nfile = "w.pt"\nkey = "model_ema"\n'
    (tmp_path / "recipe.toml").write_text(text)
    assert load_recipe(tmp_path).weights_key == "model_ema"

    def fc(**options: object) -> torch.Tensor:
        found: torch.Tensor = resolve_network(str(tmp_path), **options).module.state_dict()["fc.weight"]  # type: ignore[arg-type]
        return found

    assert torch.equal(fc(), averaged.state_dict()["fc.weight"])
    assert torch.equal(fc(weights_key="model"), plain.state_dict()["fc.weight"])
    # The key is of the recipe's file, not of another.
    assert torch.equal(fc(weights=tmp_path / "other.pt"), plain.state_dict()["fc.weight"])


@pytest.mark.parametrize("reference", ["aff_resnet32", "aff_deploy.nets:aff_resnet32"])
def test_a_key_without_a_file(reference: str) -> None:
    with pytest.raises(WeightsError, match="no weights file to take 'ema' from"):
        resolve_network(reference, weights_key="ema")


def test_what_is_given_against_the_authors_names_is_said() -> None:
    loaded = load_weights(
        nets.iaff_resnet32(layers=(1, 1, 1), width=16, num_classes=10, share_global=True),
        AUTHORS / "cifar_iaff_resnet_b1_c1.params",
        share_global=True,
    )
    assert "though the weights are of the authors' MXNet code, which means False" in loaded.notes[0]
