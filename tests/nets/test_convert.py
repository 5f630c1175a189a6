"""Other people's checkpoints: the authors' Gluon files, the PyTorch port, wrapped and averaged copies."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from aff_deploy import nets
from aff_deploy.errors import WeightsError
from aff_deploy.nets import AFF, blocks, cifar, iAFF, load_weights
from aff_deploy.nets.architectures import FACTORIES, Recognised, recognise
from aff_deploy.nets.names import authors_to_ours
from aff_deploy.nets.saving import save_weights
from aff_deploy.nets.weight_files import read_checkpoint
from tests.nets.foreign import AUTHORS, RECORDED, Fused, cifar_resnet, error_of, load, same, trained
from tests.nets.params_files import array, listing
from tests.support import randomise_batchnorm

IMAGENET = "imagenet_iaff_resnet_1111"
FIXTURES = os.environ.get("AFF_DEPLOY_FIXTURES", "")
FAMILIES = ("aff_resnet50", "iaff_resnet50", "aff_resnext50_32x4d", "iaff_resnext50_32x4d")


@pytest.mark.parametrize("name", RECORDED)
def test_the_authors_files_give_the_authors_outputs(name: str) -> None:
    build, recorded = RECORDED[name]
    network = build()
    assert error_of(network, recorded) > 0.1
    loaded = load_weights(network, AUTHORS / f"{name}.params")
    assert loaded.format == "MXNet"
    assert loaded.gluon
    assert error_of(network, recorded) <= 1e-5


@pytest.mark.skipif(
    not (FIXTURES and (Path(FIXTURES) / f"{IMAGENET}.params").is_file()),
    reason=f"AFF_DEPLOY_FIXTURES names no folder with {IMAGENET}.params",
)
def test_the_imagenet_file_gives_the_authors_output() -> None:
    network = nets.iaff_resnet50(layers=(1, 1, 1, 1), num_classes=10)
    load_weights(network, Path(FIXTURES) / f"{IMAGENET}.params")
    assert error_of(network, Path(FIXTURES) / f"{IMAGENET}.npz") <= 1e-5


def names_and_shapes(name: str) -> dict[str, list[int]]:
    content: dict[str, list[int]] = json.loads((AUTHORS / f"{name}.keys.json").read_text())
    return content


@pytest.mark.parametrize("name", FAMILIES)
def test_names_and_shapes_match_ours_one_to_one(name: str) -> None:
    theirs = names_and_shapes(name)
    ours = authors_to_ours(theirs)
    assert ours is not None
    assert len(set(ours.values())) == len(theirs)
    with torch.device("meta"):
        state = getattr(nets, name)().state_dict()
    expected = {key: list(value.shape) for key, value in state.items() if not key.endswith("num_batches_tracked")}
    assert {ours[key]: shape for key, shape in theirs.items()} == expected


def test_authors_names_in_a_pytorch_file(tmp_path: Path) -> None:
    build, recorded = RECORDED["cifar_iaff_resnet_b1_c1"]
    tensors = dict(read_checkpoint(AUTHORS / "cifar_iaff_resnet_b1_c1.params").tensors)
    torch.save(tensors, tmp_path / "w.pth")
    network = build()
    assert load_weights(network, tmp_path / "w.pth").share_global is False
    assert error_of(network, recorded) <= 1e-5


def test_affine_values_that_the_network_has_no_place_for(tmp_path: Path) -> None:
    build, _ = RECORDED["cifar_aff_resnet_b1_c1"]
    tensors = dict(read_checkpoint(AUTHORS / "cifar_aff_resnet_b1_c1.params").tensors)
    torch.save(tensors | {"features.0.beta": torch.full((3,), 0.5)}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=r"1 unexpected \(features\.0\.beta\)"):
        load_weights(build(), tmp_path / "w.pth")


# The quirk of the PyTorch port.


@pytest.mark.parametrize("built", [False, True])
def test_a_second_branch_that_training_never_reached_means_sharing(tmp_path: Path, built: bool) -> None:
    source, network = trained("fusion", True), Fused(share_global=built)
    loaded = load(network, source.state_dict(), tmp_path)
    assert loaded.share_global is True
    assert "training reached global_att but never global_att2" in loaded.notes[0]
    assert ("built with False" in loaded.notes[0]) is not built
    assert same(network, source)


@pytest.mark.parametrize("shared", [False, True])
def test_where_nothing_tells_the_argument_stays(tmp_path: Path, shared: bool) -> None:
    source = Fused(share_global=shared, seed=1)
    randomise_batchnorm(source, 0)
    for state in (source.state_dict(), Fused(seed=2).state_dict()):
        network = Fused(share_global=shared)
        loaded = load(network, state, tmp_path)
        assert loaded.share_global is None
        (note,) = loaded.notes
        assert note.startswith(f"share_global={shared} was assumed, as the network was built: nothing in the file tells it")
        assert note.endswith(f"give --arguments share_global={str(not shared).lower()}")
        assert network.fusion_module.share_global is shared


def test_a_trained_second_branch_is_left_to_the_argument(tmp_path: Path) -> None:
    for place in ("fusion", "fuse_mode"):
        source, network = trained(place, False), Fused()
        assert load(network, source.state_dict(), tmp_path).share_global is None
        assert same(network, source)


def test_the_ports_names_mean_sharing(tmp_path: Path) -> None:
    source = Fused("fuse_mode", True, seed=1)
    randomise_batchnorm(source, 0)
    network = Fused()
    loaded = load(network, source.state_dict(), tmp_path)
    assert loaded.share_global is True
    assert "names are those of the PyTorch port" in loaded.notes[0]
    assert same(network, source)


@pytest.mark.parametrize("place", ["att", "fuse_mode"])
def test_a_fusion_that_is_another_attribute_of_its_block(tmp_path: Path, place: str) -> None:
    source, network = Fused(place, seed=1, kind="aff"), Fused(kind="aff")
    randomise_batchnorm(source, 0)
    load(network, {f"module.{name}": value for name, value in source.state_dict().items()}, tmp_path)
    assert same(network, source)


def test_a_dead_branch_may_be_missing(tmp_path: Path) -> None:
    source = Fused(share_global=True, seed=1)
    randomise_batchnorm(source, 0)
    state = {name: value for name, value in source.state_dict().items() if "global_att2" not in name}
    network = Fused(share_global=True)
    load(network, state, tmp_path)
    assert same(network, source)
    with pytest.raises(WeightsError, match=r"missing \(layer1.0.fusion.global_att2"):
        load(Fused(share_global=False), state, tmp_path)


@pytest.mark.parametrize("built", [False, True])
def test_mxnet_never_shares(built: bool) -> None:
    network = cifar_resnet(blocks.iaff(4, built))
    loaded = load_weights(network, AUTHORS / "cifar_iaff_resnet_b1_c1.params")
    assert loaded.share_global is False
    assert error_of(network, RECORDED["cifar_iaff_resnet_b1_c1"][1]) <= 1e-5


def test_another_scale_than_the_authors_is_said() -> None:
    loaded = load_weights(cifar_resnet(blocks.aff(4, 1.0)), AUTHORS / "cifar_aff_resnet_b1_c1.params")
    assert "scales AFF by 2" in loaded.notes[0]


# Our own files.


@pytest.mark.parametrize("recorded", [True, False, None])
def test_what_a_file_of_ours_records_is_heeded(tmp_path: Path, recorded: bool | None) -> None:
    source = Fused(seed=1)
    randomise_batchnorm(source, 0)
    artifact = save_weights(source, tmp_path / "new/w.safetensors", source="x.params", share_global=recorded)
    assert artifact.path.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["w.safetensors"]
    network = Fused(share_global=True)
    assert load_weights(network, artifact.path).share_global is recorded
    assert network.fusion_module.share_global is (True if recorded is None else recorded)


def test_the_same_weights_give_the_same_bytes(tmp_path: Path) -> None:
    one, other = (save_weights(Fused(), tmp_path / name, share_global=True) for name in ("a.safetensors", "b.safetensors"))
    assert one.manifest == other.manifest


@pytest.mark.parametrize("metadata", ["", "{", "[1]", '{"share_global": "yes"}', "[" * 60000])
def test_strange_metadata_is_ignored(tmp_path: Path, metadata: str) -> None:
    safetensors.torch.save_file(Fused().state_dict(), tmp_path / "w.safetensors", {"aff_deploy": metadata})
    assert load_weights(Fused(), tmp_path / "w.safetensors").share_global is None


# Wrappings.


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_ema": state},
        lambda state: {"ema": state, "epoch": 1},
        lambda state: {"state_dict_ema": state},
        lambda state: {"ema": {"module": state, "decay": 0.99}},
        lambda state: {"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": value for name, value in state.items()},
        lambda state: {name.replace("layer1.", "layer1._orig_mod."): value for name, value in state.items()},
        lambda state: {f"model.{name}": value for name, value in state.items()},
        lambda state: {"n_averaged": torch.tensor(5)} | {f"module.{name}": value for name, value in state.items()},
        lambda state: {f"{'aux' if 'running' in name else 'arg'}:{name}": value for name, value in state.items()},
    ],
)
def test_wrapped_and_averaged(tmp_path: Path, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
    source, network = Fused(seed=1), Fused()
    randomise_batchnorm(source, 0)
    load(network, wrap(source.state_dict()), tmp_path)
    assert same(network, source)


def test_several_copies(tmp_path: Path) -> None:
    plain, averaged = Fused(seed=1), Fused(seed=2)
    content = {"model": plain.state_dict(), "model_ema": averaged.state_dict()}
    network = Fused()
    loaded = load(network, content, tmp_path)
    assert "model was taken, model_ema was not" in loaded.notes[0]
    assert same(network, plain)
    assert "choose with --key NAME" in loaded.notes[0]
    assert "was taken" not in "".join(load(network, content, tmp_path, key="model_ema").notes)
    assert same(network, averaged)
    with pytest.raises(WeightsError, match="no state dict under 'ema'; it has model, model_ema"):
        load(network, content, tmp_path, key="ema")


def test_a_key_of_another_kind_of_file() -> None:
    with pytest.raises(WeightsError, match="has no key 'ema'"):
        load_weights(Fused(), AUTHORS / "cifar_aff_resnet_b1_c1.params", key="ema")


# In words.


@pytest.mark.parametrize("factory", FACTORIES, ids=lambda factory: factory.__name__)
def test_bundled_networks_are_recognised(factory: Callable[..., nn.Module]) -> None:
    with torch.device("meta"):
        standard, other = factory(), factory(layers=(1, 2, 1, 1) if "50" in factory.__name__ else (1, 2, 1))
    shapes = {name: tuple(value.shape) for name, value in standard.state_dict().items()}
    assert recognise(shapes) == Recognised(factory.__name__, factory.__name__)
    assert recognise({f"module.{name}": shape for name, shape in shapes.items()}) == recognise(shapes)
    found = recognise({name: tuple(value.shape) for name, value in other.state_dict().items()})
    assert found is not None
    assert "(layers=[1, 2, 1" in found.words
    assert found.build.startswith(f"aff_deploy.nets:{found.factory} with layers=[1,2,1")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_authors_networks_are_recognised(name: str) -> None:
    found = recognise(names_and_shapes(name))
    assert found is not None
    assert found.words == f"{name}, in the names of the authors' MXNet code"
    assert found.build == f"aff_deploy.nets:{name}"


@pytest.mark.parametrize("name", RECORDED)
def test_what_an_error_says_to_build_fits_the_authors_file(name: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load_weights(nets.aff_resnet32(), AUTHORS / f"{name}.params")
    sizes = "layers=[1,1,1], num_classes=10, width=16" + (", groups=4, group_width=16" if "resnext" in name else "")
    assert f" with {sizes} (--arguments KEY=VALUE, once for each)" in str(caught.value)
    found = recognise({key: tuple(value.shape) for key, value in read_checkpoint(AUTHORS / f"{name}.params").tensors.items()})
    assert found is not None
    assert f"aff_deploy.nets:{found.factory} with" in str(caught.value)
    network = getattr(nets, found.factory)(**found.arguments)
    load_weights(network, AUTHORS / f"{name}.params")
    assert error_of(network, RECORDED[name][1]) <= 1e-5


def port(kind: str = "iaff") -> dict[str, Tensor]:
    """Names and shapes of the PyTorch port's ResNet-18, as far as telling it needs them."""
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(1000, 512)}
    for stage, channels in enumerate((64, 128, 256, 512), start=1):
        for block in range(2):
            prefix = f"layer{stage}.{block}."
            state[prefix + "conv1.weight"] = torch.zeros(channels, channels, 3, 3)
            with torch.device("meta"):
                fusion = iAFF(channels) if kind == "iaff" else AFF(channels)
            state |= {f"{prefix}fuse_mode.{name}": torch.zeros(value.shape) for name, value in fusion.state_dict().items()}
    return state


@pytest.mark.parametrize(("kind", "fusion"), [("aff", "AFF"), ("iaff", "iAFF")])
def test_the_port_is_recognised_and_told_apart(tmp_path: Path, kind: str, fusion: str) -> None:
    with pytest.raises(WeightsError) as caught:
        load(nets.iaff_resnet50(layers=(1, 1, 1, 1)), port(kind), tmp_path)
    message = str(caught.value)
    assert f"of the PyTorch port's ResNet-18 with {fusion} (7x7 stem, fusion in every stage" in message
    assert "the network is iaff_resnet50(layers=[1, 1, 1, 1])" in message
    assert "build the port's own network" in message
    assert "\n" not in message


def test_another_network_is_told_in_words() -> None:
    path = AUTHORS / "cifar_iaff_resnext_b1_c1_4x16.params"
    with pytest.raises(WeightsError) as caught:
        load_weights(nets.aff_resnet_digits(), path)
    message = str(caught.value)
    assert "the checkpoint is of iaff_resnext38_32x4d(layers=[1, 1, 1], num_classes=10, width=16" in message
    assert "in the names of the authors' MXNet code, the network is aff_resnet_digits" in message
    assert "unexpected (features." in message


def test_sizes_that_no_callable_has_are_told_in_words() -> None:
    with torch.device("meta"):
        network = cifar.cifar_resnext(blocks.iaff(16, False), (1, 1, 1), 10, 1, width=16, groups=4, group_width=16)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items() if not name.startswith("fc.")}
    found = recognise(shapes)
    assert found is not None
    assert found.words == "a ResNeXt for CIFAR with iAFF: stages of 64, 128, 256 channels, 1, 1, 1 blocks"
    assert found.build == ""


def test_other_arguments_are_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        load(nets.aff_resnet_digits(), nets.aff_resnet_digits(num_classes=7).state_dict(), tmp_path)
    assert "fc.weight has shape (7, 64), the network's has (10, 64)" in str(caught.value)
    assert "the checkpoint is of aff_resnet_digits(num_classes=7), the network is aff_resnet_digits" in str(caught.value)


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"stages.0.0.body.0.weight": ()},
        {f"stages.{n}.0.x": () for n in range(4)} | {"fc.weight": (10, 5)},
        {f"stages.0.{n}.body.5.weight": (1, 1, 1, 1) for n in range(2000)},
        {"stages.0.0.fusion.local_att.0.weight": (0, 1, 1, 1), "stages.1.0.body.6.weight": (1, 1, 1, 1)},
        {"stages.0.0.fusion.local_att.0.weight": ()},
        {"fc.weight": (), "lateral.0.weight": (), "stages.0.0.fusion.local_att.0.weight": (1,)},
        {f"stages.{'9' * 5000}.0.x": (1,), f"features.{'9' * 5000}.0.y": (1,), "features.0.weight": (1,)},
        {"features.0.weight": (1,), "features.3.0.body.0.gamma": (1,)},
        {"conv1.weight": (1, 1, 1, 1), "layer1.0.conv1.weight": (), "layer1.0.a.local_att.0.weight": ()},
        {f"stages.{n}.0.body.6.weight": (8, 4, 1, 1) for n in range(3)},
    ],
)
def test_strange_shapes_are_not_recognised_and_do_no_harm(shapes: dict[str, tuple[int, ...]]) -> None:
    found = recognise(shapes)
    assert found is None or "\n" not in found.words


def test_names_of_an_exported_symbol(tmp_path: Path) -> None:
    (tmp_path / "w.params").write_bytes(listing([array(np.ones(3, np.float32))], [b"arg:resnet0_conv0_weight"]))
    with pytest.raises(WeightsError, match="save with save_parameters"):
        load_weights(Fused(), tmp_path / "w.params")
