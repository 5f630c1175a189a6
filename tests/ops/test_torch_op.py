"""The operator in PyTorch: its CPU implementation, what torch.library asks of it, and networks fused with it."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from aff_deploy.errors import NetworkError
from aff_deploy.export import export_onnx
from aff_deploy.nets import AFF, MSCAM, aff_resnet_digits, iAFF
from aff_deploy.ops import Variant, fuse_module
from aff_deploy.ops.modules import FusedAttention
from aff_deploy.ops.reference import attentional_fusion as reference
from aff_deploy.ops.torch_op import attentional_fusion
from aff_deploy.spec import TensorSpec
from tests.support import randomise_batchnorm

WAYS = tuple(
    product(
        (("sum", True), ("self", True), ("self", False), ("explicit", True), ("explicit", False), ("concat", True)),
        ("local", "global", "local+global"),
    )
)


def call(context: str, blend: bool, branches: str, *, dtype: torch.dtype = torch.float32, last: bool = False) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    seen = {"explicit": 11, "concat": 16}.get(context, 8)
    x = random(2, 8, 3, 5)
    weights = [t for _ in branches.split("+") for t in (random(3, seen), random(3), random(8, 3, 1, 1), random(8))]
    return {
        "x": x.contiguous(memory_format=torch.channels_last) if last else x,
        "y": random(2, 8, 3, 5) if blend else None,
        "a": random(2, 11, 3, 5) if context == "explicit" else None,
        "weights": weights,
        "context": context,
        "branches": branches,
        "activation": "Silu",
        "gate": "HardSigmoid",
        "scale": 2.0,
    }


@pytest.mark.parametrize(("way", "branches"), WAYS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_cpu_implementation_is_the_definition(way: tuple[str, bool], branches: str, dtype: torch.dtype) -> None:
    context, blend = way
    given = call(context, blend, branches, dtype=dtype, last=branches == "global")
    out = attentional_fusion(**given)
    names = [f"{branch}_{part}" for branch in branches.split("+") for part in ("w1", "b1", "w2", "b2")]
    named = dict(zip(names, given["weights"], strict=True))
    named |= {name: given[name] for name in ("x", "y", "a") if given[name] is not None}
    if context == "concat":
        named["a"] = torch.cat([given["x"], given["y"]], 1)
    arrays = {name: tensor.double().numpy() for name, tensor in named.items()}
    arrays = {name: a.reshape(*a.shape[:2], 1, 1) if name[-2:] in ("w1", "w2") else a for name, a in arrays.items()}
    variant = Variant("explicit" if context == "concat" else context, blend, tuple(branches.split("+")), "Silu", "HardSigmoid")  # type: ignore[arg-type]
    expected = reference(variant, arrays, scale=2.0)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    assert out.dtype == dtype
    assert out.stride() == given["x"].stride()
    assert np.max(np.abs(out.double().numpy() - expected)) <= tolerance * np.max(np.abs(expected))


@pytest.mark.parametrize(("way", "branches"), WAYS)
@pytest.mark.parametrize("last", [False, True])
def test_torch_library_accepts_it(way: tuple[str, bool], branches: str, last: bool) -> None:
    given = call(*way, branches, last=last)
    checked = torch.library.opcheck(
        attentional_fusion, (), given, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    )
    assert set(checked.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": "other"}, "context='other'"),
        ({"branches": "global+local"}, "branches='global\\+local'"),
        ({"activation": "Gelu"}, "activation='Gelu'"),
        ({"gate": "Tanh"}, "gate='Tanh'"),
        ({"y": None}, "needs y"),
        ({"y": torch.ones(2, 8, 3, 1)}, "differ in shape"),
        ({"a": torch.ones(2, 8, 3, 5)}, "only with it"),
        ({"context": "explicit", "a": torch.ones(2, 8, 5, 3)}, "positions"),
        ({"context": "explicit", "a": torch.ones(2, 9, 3, 5)}, "do not fit 9 channels"),
        ({"weights": [torch.ones(3, 8), torch.ones(3), torch.ones(8, 3)]}, "3 weights"),
        ({"weights": [torch.ones(3, 8, 3, 3), torch.ones(3), torch.ones(8, 3), torch.ones(8)]}, "do not fit"),
        ({"weights": [torch.ones(3, 8), torch.ones(2), torch.ones(8, 3), torch.ones(8)]}, "do not fit"),
        ({"weights": [torch.ones(3, 8, dtype=torch.float64), torch.ones(3), torch.ones(8, 3), torch.ones(8)]}, "one type"),
        ({"x": torch.ones(2, 8, dtype=torch.int64)}, "floating point"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attentional_fusion(**{**call("sum", True, "local"), **change})


class Both(nn.Module):
    """Two fusions, one of them in two places."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self.fusion = fusion
        self.again = fusion

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        once: Tensor = self.fusion(x) if isinstance(self.fusion, MSCAM) else self.fusion(x, y)
        return once


FUSIONS = {
    "aff": lambda: AFF(16, r=4),
    "aff2": lambda: AFF(16, inter=7, scale=2.0),
    "iaff": lambda: iAFF(16),
    "iaff shared": lambda: iAFF(16, share_global=True),
}
GATES = {f"{a} {b}": (lambda a=a, b=b: MSCAM(16, context=(a, b))) for a, b in product(("local", "global"), repeat=2)}


def prepared(net: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    randomise_batchnorm(net, 1)
    return net.eval().to(dtype)


@pytest.mark.parametrize("name", [*FUSIONS, *GATES])
def test_modules_are_replaced_exactly(name: str) -> None:
    torch.manual_seed(0)
    net = prepared({**FUSIONS, **GATES}[name](), torch.float64)
    inputs = [torch.randn(2, 16, 5, 6, dtype=torch.float64) for _ in range(1 if name in GATES else 2)]
    expected = net(*inputs)
    fused = fuse_module(net)
    assert isinstance(fused, FusedAttention)
    assert not list(fused.parameters())
    torch.testing.assert_close(fused(*inputs), expected, rtol=1e-10, atol=1e-10)


def test_a_whole_network_in_place() -> None:
    torch.manual_seed(0)
    net = prepared(aff_resnet_digits())
    x = torch.randn(3, 1, 8, 8)
    expected = net(x)
    count = sum(isinstance(module, AFF) for module in net.modules())
    assert fuse_module(net) is net
    assert not any(isinstance(module, AFF) for module in net.modules())
    assert sum(isinstance(module, FusedAttention) for module in net.modules()) == count > 0
    torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)


def test_a_module_in_two_places_stays_one() -> None:
    net = prepared(Both(AFF(16)))
    fuse_module(net)
    assert isinstance(net.fusion, FusedAttention)
    assert net.fusion is net.again


def test_narrow_inputs_as_autocast_makes_them() -> None:
    net = prepared(iAFF(16))
    x, y = torch.randn(2, 16, 5, 6), torch.randn(2, 16, 5, 6)
    expected = net(x, y)
    fused = fuse_module(net)
    for given in ((x.bfloat16(), y), (x, y.bfloat16())):
        torch.testing.assert_close(fused(*given), expected, rtol=5e-2, atol=5e-2)
    assert fused(x.bfloat16(), y.bfloat16()).dtype == torch.bfloat16


def test_asking_for_the_operator_alone_loads_no_torch() -> None:
    program = "import sys, aff_deploy.ops, aff_deploy.passes.kernels; print({'torch', 'triton'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_training_mode_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"eval\(\)"):
        fuse_module(Both(AFF(16)))


def test_a_part_in_training_mode_is_refused() -> None:
    net = Both(AFF(16)).eval()
    net.fusion.local_att.train()
    with pytest.raises(NetworkError, match="'fusion' is in training mode"):
        fuse_module(net)


def test_a_rebuilt_branch_is_refused_and_nothing_replaced() -> None:
    fusion = AFF(16)
    fusion.local_att[2] = nn.GELU()
    net = nn.Sequential(MSCAM(16), Both(fusion)).eval()
    with pytest.raises(NetworkError, match=r"fusion '1\.fusion' has a local branch of .*GELU"):
        fuse_module(net)
    assert isinstance(net[0], MSCAM)


def changed(change: str) -> AFF:
    fusion = AFF(16)
    if change == "a pool in the local branch":
        fusion.local_att = nn.Sequential(nn.AdaptiveAvgPool2d(1), *fusion.local_att)
    elif change == "no pool in the global branch":
        fusion.global_att = fusion.global_att[1:]
    elif change == "a pool to four positions":
        fusion.global_att[0] = nn.AdaptiveAvgPool2d(2)
    elif change == "a forward of its own":
        fusion.forward = lambda x, y: x  # type: ignore[method-assign]
    elif change == "another type":
        fusion.local_att[3].double()
    else:
        options = {"a 3x3 convolution": {"kernel_size": 3, "padding": 1}, "groups": {"kernel_size": 1, "groups": 2}}
        options["a stride"] = {"kernel_size": 1, "stride": 2}
        fusion.local_att[0] = nn.Conv2d(16, 4, **options[change])
    return fusion.eval()


@pytest.mark.parametrize(
    "change",
    [
        *("a pool in the local branch", "no pool in the global branch", "a pool to four positions", "a forward of its own"),
        *("another type", "a 3x3 convolution", "groups", "a stride"),
    ],
)
def test_what_is_not_as_it_was_built_is_refused(change: str) -> None:
    net = Both(changed(change))
    with pytest.raises(NetworkError, match="fusion 'fusion'"):
        fuse_module(net)
    assert isinstance(net.fusion, AFF)


def test_hooks_are_refused() -> None:
    net = Both(AFF(16)).eval()
    net.fusion.local_att[0].register_forward_hook(lambda *_: None)
    with pytest.raises(NetworkError, match="'fusion' has hooks"):
        fuse_module(net)


def test_a_network_without_our_modules_is_told() -> None:
    with pytest.raises(NetworkError, match="no MSCAM, AFF or iAFF"):
        fuse_module(nn.Linear(2, 2).eval())


@pytest.mark.parametrize(("module", "inputs"), [(AFF(16), 1), (iAFF(16), 1), (MSCAM(16), 2)])
def test_another_number_of_inputs_is_refused(module: nn.Module, inputs: int) -> None:
    fused = fuse_module(module.eval())
    with pytest.raises(TypeError, match="two inputs" if inputs == 1 else "one input"):
        fused(*[torch.zeros(1, 16, 2, 2)] * inputs)


def test_a_fused_network_is_not_exported() -> None:
    with pytest.raises(NetworkError, match="export it before"):
        export_onnx(fuse_module(Both(AFF(16)).eval()), [TensorSpec("x", (1, 16, 4, 4)), TensorSpec("y", (1, 16, 4, 4))])


def test_statistics_of_the_batch_are_refused() -> None:
    fusion = AFF(16)
    fusion.global_att[2] = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(NetworkError, match="each batch"):
        fuse_module(Both(fusion).eval())


@pytest.mark.parametrize("name", FUSIONS)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_passes_through(name: str, backend: str) -> None:
    torch.manual_seed(0)
    net = fuse_module(prepared(Both(FUSIONS[name]())))
    x, y = torch.randn(2, 16, 5, 6), torch.randn(2, 16, 5, 6)
    with torch.no_grad():
        expected = net(x, y)
        torch._dynamo.reset()
        compiled = torch.compile(net, backend=backend, fullgraph=True)
        torch.testing.assert_close(compiled(x, y), expected)


def test_torch_export_passes_through() -> None:
    net = fuse_module(prepared(Both(iAFF(16))))
    x, y = torch.randn(2, 16, 5, 6), torch.randn(2, 16, 5, 6)
    sizes = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(net, (x, y), dynamic_shapes=(sizes, sizes))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aff_deploy.attentional_fusion.default"] * 2
    x, y = torch.randn(5, 16, 5, 6), torch.randn(5, 16, 5, 6)
    torch.testing.assert_close(program.module()(x, y), net(x, y))
