"""The modules against the formulas of the paper, written out in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from aff_deploy.errors import NetworkError
from aff_deploy.nets import AFF, MSCAM, iAFF
from tests.support import randomise_batchnorm

Array = np.ndarray[Any, Any]
TOLERANCE = 2e-5


def conv_bn(weights: dict[str, Array], conv: str, bn: str, x: Array) -> Array:
    mixed = np.einsum("oc,nchw->nohw", weights[f"{conv}.weight"][:, :, 0, 0], x)
    mixed = mixed + weights[f"{conv}.bias"][:, None, None]
    gain = weights[f"{bn}.weight"] / np.sqrt(weights[f"{bn}.running_var"] + 1e-5)
    shift = weights[f"{bn}.bias"] - weights[f"{bn}.running_mean"] * gain
    return np.asarray(mixed * gain[:, None, None] + shift[:, None, None])


def branch(weights: dict[str, Array], name: str, x: Array) -> Array:
    first = 0
    if name.startswith("global"):
        x, first = x.mean((2, 3), keepdims=True), 1
    hidden = np.maximum(conv_bn(weights, f"{name}.{first}", f"{name}.{first + 1}", x), 0)
    return conv_bn(weights, f"{name}.{first + 3}", f"{name}.{first + 4}", hidden)


def sigmoid(z: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-z)))


def mix(weights: dict[str, Array], names: tuple[str, str], attended: Array, x: Array, y: Array) -> Array:
    weight = sigmoid(branch(weights, names[0], attended) + branch(weights, names[1], attended))
    return np.asarray(x * weight + y * (1 - weight))


def prepare(module: nn.Module, seed: int = 0) -> tuple[nn.Module, dict[str, Array]]:
    randomise_batchnorm(module, seed)
    module.eval()
    return module, {name: value.double().numpy() for name, value in module.state_dict().items()}


def data(channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, 3, channels, 5, 4, generator=generator)
    return x, y + 0.5


def run(module: nn.Module, *inputs: torch.Tensor) -> Array:
    with torch.inference_mode():
        return np.asarray(module(*inputs).numpy())


@pytest.mark.parametrize("channels", [1, 6, 16])
@pytest.mark.parametrize("scale", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("options", [{}, {"r": 16}, {"r": 0.5}, {"inter": 7}], ids=str)
def test_aff(channels: int, scale: float, options: dict[str, Any]) -> None:
    module, weights = prepare(AFF(channels, scale=scale, **options))
    x, y = data(channels)
    expected = scale * mix(weights, ("local_att", "global_att"), (x + y).numpy(), x.numpy(), y.numpy())
    np.testing.assert_allclose(run(module, x, y), expected, rtol=0, atol=TOLERANCE)


def test_aff_tells_its_inputs_apart() -> None:
    module, _ = prepare(AFF(8))
    x, y = data(8)
    assert np.abs(run(module, x, y) - run(module, y, x)).max() > 0.1


@pytest.mark.parametrize("share_global", [False, True])
@pytest.mark.parametrize("options", [{}, {"r": 2}, {"inter": 13}], ids=str)
def test_iaff(share_global: bool, options: dict[str, Any]) -> None:
    module, weights = prepare(iAFF(8, share_global=share_global, **options))
    x, y = data(8)
    first = mix(weights, ("local_att", "global_att"), (x + y).numpy(), x.numpy(), y.numpy())
    second = ("local_att2", "global_att" if share_global else "global_att2")
    np.testing.assert_allclose(run(module, x, y), mix(weights, second, first, x.numpy(), y.numpy()), rtol=0, atol=TOLERANCE)


def test_shared_global_keeps_the_dead_branch_in_the_state_dict() -> None:
    shared, own = iAFF(8, share_global=True), iAFF(8)
    assert list(shared.state_dict()) == list(own.state_dict())
    shared.load_state_dict(own.state_dict())
    randomise_batchnorm(own, 1)
    randomise_batchnorm(shared, 1)
    x, y = data(8)
    assert np.abs(run(shared.eval(), x, y) - run(own.eval(), x, y)).max() > 1e-3


@pytest.mark.parametrize(
    ("context", "names"),
    [
        (("local", "global"), ("local_att", "global_att")),
        (("global", "local"), ("global_att", "local_att")),
        (("global", "global"), ("global_att", "global_att2")),
        (("local", "local"), ("local_att", "local_att2")),
    ],
)
def test_mscam(context: tuple[str, str], names: tuple[str, str]) -> None:
    module, weights = prepare(MSCAM(8, context=context))
    x, _ = data(8)
    expected = x.numpy() * sigmoid(branch(weights, names[0], x.numpy()) + branch(weights, names[1], x.numpy()))
    np.testing.assert_allclose(run(module, x), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("channels", "r", "inter", "expected"),
    [(64, 4, None, 16), (10, 4, None, 2), (3, 16, None, 1), (64, 4, 51, 51), (8, 0.5, None, 16), (100, 2.5, None, 40)],
)
def test_inner_channels(channels: int, r: float, inter: int | None, expected: int) -> None:
    for module in (MSCAM(channels, r, inter), AFF(channels, r, inter), iAFF(channels, r, inter)):
        assert module.state_dict()["local_att.0.weight"].shape == (expected, channels, 1, 1)
        assert module.state_dict()["global_att.4.weight"].shape == (channels, expected, 1, 1)


@pytest.mark.parametrize("options", [{"r": 0}, {"r": -4}, {"inter": 0}, {"channels": 0}, {"r": float("nan")}], ids=str)
@pytest.mark.parametrize("module", [MSCAM, AFF, iAFF])
def test_impossible_sizes_are_refused(module: type[nn.Module], options: dict[str, Any]) -> None:
    with pytest.raises(NetworkError, match="must be"):
        module(**{"channels": 8, **options})


@pytest.mark.parametrize("context", [("local",), ("local", "medium"), ("local", "global", "global")])
def test_unknown_context_is_refused(context: Any) -> None:
    with pytest.raises(NetworkError, match="pair of 'local' and 'global'"):
        MSCAM(8, context=context)
