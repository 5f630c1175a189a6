"""Which network a checkpoint is of, told from its names and shapes: for the words of an error."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from aff_deploy.errors import NetworkError
from aff_deploy.nets import cifar, digits, fpn, inception, resnet
from aff_deploy.nets.names import authors_to_ours, fusions, is_gluon, unwrapped

Shapes = Mapping[str, Sequence[int]]
"""The shape of each named tensor."""

FACTORIES: tuple[Callable[..., nn.Module], ...] = (
    *(resnet.aff_resnet50, resnet.iaff_resnet50, resnet.aff_resnext50_32x4d, resnet.iaff_resnext50_32x4d),
    *(resnet.add_resnet50, resnet.add_resnext50_32x4d),
    *(cifar.aff_resnet32, cifar.iaff_resnet32, cifar.aff_resnext38_32x4d, cifar.aff_resnext47_32x4d),
    *(cifar.iaff_resnext38_32x4d, digits.aff_resnet_digits, digits.iaff_resnet_digits),
    *(inception.aff_inception, fpn.aff_fpn_resnet50),
)
"""Of those that fit, the one with the fewest arguments is named."""

MAX_BLOCKS = 512
COUNTER = "num_batches_tracked"

_BLOCK = re.compile(r"((?:backbone\.)?stages)\.(\d{1,4})\.(\d{1,4})\.(.+)")
_PORT_BLOCK = re.compile(r"layer(\d{1,4})\.(\d{1,4})\.conv1\.weight")
# Of basic blocks, of bottlenecks.
_PORT_DEPTHS: dict[tuple[int, ...], tuple[str, str]] = {
    (2, 2, 2, 2): ("18", ""),
    (3, 4, 6, 3): ("34", "50"),
    (3, 4, 23, 3): ("", "101"),
    (3, 8, 36, 3): ("", "152"),
}


@dataclass(frozen=True)
class Recognised:
    """A network that is known.

    Attributes:
        words: what it is, for an error, such as ``aff_resnet50(num_classes=10)``.
        factory: the callable of `aff_deploy.nets` that builds it; empty where none does.
        arguments: what to call it with, beside its defaults.
        port: it is the PyTorch port's.
    """

    words: str
    factory: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    port: bool = False

    @property
    def build(self) -> str:
        """What to give for it on a command line; empty where no callable of ours builds it."""
        given = ", ".join(f"{key}={str(value).replace(' ', '')}" for key, value in self.arguments.items())
        reference = f"aff_deploy.nets:{self.factory}" if self.factory else ""
        return f"{reference} with {given} (--arguments KEY=VALUE, once for each)" if given and reference else reference


def recognise(shapes: Shapes) -> Recognised | None:
    """The network that has these tensors; None where none is known.

    A bundled network is named only if every name and shape is its own (BatchNorm's counters and the
    affine parameters that Gluon stores for a BatchNorm without them aside). Otherwise the family is
    described: the authors' networks in other sizes, or the PyTorch port.
    """
    shapes = {short: shapes[name] for name, short in unwrapped(shapes, ()).items()}
    port = _port(shapes)
    if port:
        return Recognised(port, port=True)
    translated = authors_to_ours(shapes) if is_gluon(shapes) or any(name.startswith("features.") for name in shapes) else None
    ours = {(translated or {}).get(name, name): tuple(shape) for name, shape in shapes.items() if not name.endswith(COUNTER)}
    known = _bundled(ours) or _family(ours)
    if known is None or not translated:
        return known
    return replace(known, words=f"{known.words}, in the names of the authors' MXNet code")


def _layers(ours: Shapes) -> list[int]:
    """Blocks of each stage; empty where there are no stages, or more blocks than a network has."""
    blocks = {(int(match[2]), int(match[3])) for name in ours if (match := _BLOCK.fullmatch(name))}
    stages = sorted({stage for stage, _ in blocks})
    if stages != list(range(len(stages))) or len(blocks) > MAX_BLOCKS:
        return []
    return [sum(of == stage for of, _ in blocks) for stage in stages]


def _bundled(ours: Shapes) -> Recognised | None:
    layers = _layers(ours)
    if not layers:
        return None
    found = sorted(fusions(ours), reverse=True)  # The pyramid's own before its backbone's.
    fused = [int(match[2]) + 1 for path in found if (match := _BLOCK.fullmatch(path))]
    inferred: dict[str, Any] = {
        "layers": layers,
        "num_classes": _size(ours, "fc.weight"),
        "width": _size(ours, "lateral.0.weight") or _size(ours, "stem.1.weight"),
        **_groups(ours),
        "start_layer": min(fused, default=0),
    }
    if found:
        name = f"{found[0]}.local_att.0.weight"
        ratio = _size(ours, name, 1) / max(_size(ours, name), 1)
        inferred["r"] = int(ratio) if ratio == int(ratio) else ratio
    kind = _kind(ours)
    matches: list[Recognised] = []
    for factory in FACTORIES:
        known = inspect.signature(factory).parameters
        if not factory.__name__.startswith(f"{kind}_") or len(known["layers"].default) != len(layers):
            continue
        arguments = {key: value for key, value in inferred.items() if value and key in known}
        if _same(factory, arguments, ours):
            given = {key: value for key, value in arguments.items() if value != _plain(known[key].default)}
            said = ", ".join(f"{key}={value}" for key, value in given.items())
            name = factory.__name__
            matches.append(Recognised(f"{name}({said})" if said else name, name, given))
    return min(matches, key=lambda match: (len(match.arguments), match.words), default=None)


def _groups(ours: Shapes) -> dict[str, int]:
    """``groups`` and ``group_width`` of a ResNeXt, from the shape of its first 3x3 convolution; see `blocks.bottleneck`."""
    middle, outputs = "stages.0.0.body.3.weight", _size(ours, "stages.0.0.body.6.weight")
    width, each = _size(ours, middle), _size(ours, middle, 1)
    if not (each and outputs):
        return {}
    groups = width // each
    return {"groups": groups, "group_width": width * 256 // max(groups * outputs, 1)}


def _size(shapes: Shapes, name: str, axis: int = 0) -> int:
    """One size of a tensor; 0 where the tensor or the axis is not there."""
    shape = shapes.get(name, ())
    return shape[axis] if axis < len(shape) else 0


def _same(factory: Callable[..., nn.Module], arguments: Mapping[str, Any], ours: Shapes) -> bool:
    try:
        with torch.device("meta"):
            network = factory(**arguments)
    except (NetworkError, RuntimeError, ValueError, TypeError, OverflowError):  # the sizes are a stranger's
        return False
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items() if not name.endswith(COUNTER)}
    bare = {f"{name}." for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d) and not module.affine}
    seen = {name: shape for name, shape in ours.items() if name in expected or name.rpartition(".")[0] + "." not in bare}
    return seen == expected


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _kind(names: Sequence[str] | Shapes) -> str:
    if any(".local_att2." in name for name in names):
        return "iaff"
    return "aff" if any(".local_att." in name for name in names) else "add"


def _family(ours: Shapes) -> Recognised | None:
    """A network of the authors' design in sizes that no bundled one has."""
    layers = _layers(ours)
    last = [ours.get(f"stages.{stage}.0.body.{end}.weight", ()) for stage in range(len(layers)) for end in (5, 6)]
    widths = [shape[0] for shape in last if len(shape) == 4]
    if len(layers) not in (3, 4) or len(widths) != len(layers):
        return None
    bottleneck = "stages.0.0.body.6.weight" in ours
    middle = "stages.0.0.body.3.weight"
    grouped = bottleneck and _size(ours, middle, 0) != _size(ours, middle, 1)
    design = "a ResNeXt" if grouped else "a ResNet" if bottleneck else "a pre-activation ResNet"
    where = "ImageNet" if len(layers) == 4 else "CIFAR"
    fusion = {"iaff": "iAFF", "aff": "AFF", "add": "no fusion"}[_kind(ours)]
    classes = f", {_size(ours, 'fc.weight')} classes" if "fc.weight" in ours else ""
    sizes, blocks = (", ".join(map(str, values)) for values in (widths, layers))
    return Recognised(f"{design} for {where} with {fusion}: stages of {sizes} channels, {blocks} blocks{classes}")


def _port(shapes: Shapes) -> str:
    """The PyTorch port: torchvision's ResNet, fused in every block by modules with the names of ours; empty where not."""
    blocks = {(int(match[1]), int(match[2])) for name in shapes if (match := _PORT_BLOCK.fullmatch(name))}
    stem = shapes.get("conv1.weight", ())
    if is_gluon(shapes) or len(stem) != 4 or not blocks or _kind(shapes) == "add":
        return ""
    layers = tuple(sum(of == stage for of, _ in blocks) for stage in sorted({stage for stage, _ in blocks}))
    bottleneck = "layer1.0.conv3.weight" in shapes
    middle = "layer1.0.conv2.weight"
    depth = _PORT_DEPTHS.get(layers, ("", ""))[bottleneck]
    family = "ResNeXt" if bottleneck and _size(shapes, middle, 0) != _size(shapes, middle, 1) else "ResNet"
    name = f"{family}-{depth}" if depth else f"{family} of {', '.join(map(str, layers))} blocks"
    fusion = "iAFF" if _kind(shapes) == "iaff" else "AFF"
    differs = f"{stem[2]}x{stem[3]} stem, fusion in every stage, another network than the authors' own"
    return f"the PyTorch port's {name} with {fusion} ({differs})"
