"""What other people's checkpoints call the parameters that are ours, told from the structure of the names.

Three kinds are known beside our own:

- the authors' Gluon networks: ``gamma`` and ``beta`` for BatchNorm's weight and bias, and either
  ``conv1.0``, ``layer3.0.conv1``, ``layer3.0.attention`` (their ImageNet ResNet) or
  ``features.10.0.body.0``, ``features.10.0.attention`` (the others; stages are the ``features``
  whose children are numbered blocks);
- networks in which a fusion is another attribute of its block: ``layer3.0.fuse_mode.local_att.0``
  in the PyTorch port, ``fusion`` in ours; inside the fusion the names are the same;
- the wrappings of training: ``module.``, ``_orig_mod.``, ``model.`` before every name, MXNet's ``arg:`` and ``aux:``.

Any other prefix that every name has (``net.``, ``backbone.``) is left out where all names fit without it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

Renaming = Mapping[str, str]
"""Another name for each name of a checkpoint."""

PREFIXES = ("module.", "_orig_mod.", "model.")
COMPILED = "_orig_mod."
MAX_PREFIXES = 4
"""Parts of a name that may be a prefix of all."""

AVERAGED = "n_averaged"
"""The counter that ``torch.optim.swa_utils.AveragedModel`` keeps beside the network."""

_GLUON_LEAF = re.compile(r"(.*\.)?(gamma|beta)")
_MODULE_API = re.compile(r"(arg|aux):(.+)")
_BLOCK = re.compile(r"(?:layer|features\.)(\d{1,4})\.(\d{1,4})\.(.+)")
_STEM = re.compile(r"conv1\.(\d{1,4})\.(.+)")
_SEQUENCE = re.compile(r"features\.(\d{1,4})\.(.+)")
_STEP = re.compile(r"(conv|bn)([123])\.(.+)")
_CHILD = re.compile(r"(body|resfwd|downsample|attention)\.(.+)")
_SHORTCUT = re.compile(r"downsample\.(\d{1,4})\.(.+)")
_FUSION = re.compile(r"(.+)\.local_att\.0\.weight")
_PORT = re.compile(r"(.+\.)?layer\d{1,4}\.\d{1,4}\.fuse_mode\.local_att\.0\.weight")

LEAVES = {"gamma": "weight", "beta": "bias"}
TOP = {"bn1": "stem.7", "output": "fc"}
CHILDREN = {"resfwd": "body", "attention": "fusion"}


def is_gluon(names: Collection[str]) -> bool:
    """Whether BatchNorm's parameters have the names that MXNet's Gluon gives them."""
    return any(_GLUON_LEAF.fullmatch(name) for name in names)


def is_port(names: Collection[str]) -> bool:
    """Whether these are the names of the PyTorch port's ResNets: torchvision's, with a ``fuse_mode`` in the blocks."""
    return any(_PORT.fullmatch(name) for name in names)


def unwrapped(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """The names without what training wrapped around all of them, unless the network, which has `wanted`, has it too.

    A counter of averaged models is left out; every other name is in the result.
    """
    found = {name: name for name in names if name != AVERAGED or name in wanted}
    if all(_MODULE_API.fullmatch(name) for name in found):
        found = {name: name.partition(":")[2] for name in found}
    stripped = True
    while stripped and found:
        stripped = False
        for prefix in PREFIXES:
            if all(name.startswith(prefix) for name in found.values()) and not _all_begin(wanted, prefix):
                found = {name: short.removeprefix(prefix) for name, short in found.items()}
                stripped = True
    if not any(COMPILED in name for name in wanted):
        found = {name: short.replace(COMPILED, "") for name, short in found.items()}
    return found if len(set(found.values())) == len(found) else {name: name for name in names}


def _all_begin(names: Collection[str], prefix: str) -> bool:
    return bool(names) and all(name.startswith(prefix) for name in names)


def common_prefixes(names: Collection[str]) -> Iterator[str]:
    """What every name begins with, up to a dot, the shortest first: ``net.`` and ``net.backbone.``."""
    first = next(iter(names), "")
    ends = [position + 1 for position, letter in enumerate(first) if letter == "."]
    for end in ends[:MAX_PREFIXES]:
        if not all(name.startswith(first[:end]) for name in names):
            return
        yield first[:end]


def readings(names: Collection[str], wanted: Collection[str]) -> Iterator[Renaming]:
    """Every way to read the names of a checkpoint for a network that has `wanted`, the plainest first."""
    plain = {name: name for name in names}
    yield plain
    torch_like = {name: _torch_leaf(name) for name in names} if is_gluon(names) else plain
    if torch_like is not plain:
        yield torch_like
    ours = authors_to_ours(names)
    if ours is not None:
        yield ours
    moved = _moved_fusions(torch_like.values(), wanted)
    if moved:
        yield {name: _moved(new, moved) for name, new in torch_like.items()}


def authors_to_ours(names: Collection[str]) -> dict[str, str] | None:
    """Our names for those of the authors' code; None where they are not of its networks."""
    blocks = [match for name in names if (match := _BLOCK.fullmatch(name)) and not match[3].isdigit()]
    if not blocks or not ("conv1.0.weight" in names or "features.1.weight" in names or "features.0.weight" in names):
        return None
    stages = sorted({int(match[1]) for match in blocks})
    first, last = stages[0], stages[-1]
    present = set(names)
    return {name: _our_name(_torch_leaf(name), first, last, present) for name in names}


def _our_name(name: str, first: int, last: int, present: Collection[str]) -> str:
    if block := _BLOCK.fullmatch(name):
        prefix = name.removesuffix(block[3])
        return f"stages.{int(block[1]) - first}.{block[2]}.{_our_part(block[3], prefix, present)}"
    if stem := _STEM.fullmatch(name):
        return f"stem.{stem[1]}.{stem[2]}"
    if part := _SEQUENCE.fullmatch(name):
        position = int(part[1])
        return f"stem.{position}.{part[2]}" if position < first else f"head.{position - last - 1}.{part[2]}"
    whole, _, leaf = name.rpartition(".")
    return f"{TOP.get(whole, whole)}.{leaf}" if whole else leaf


def _our_part(part: str, prefix: str, present: Collection[str]) -> str:
    """A name inside a block: ``conv2.weight`` is ``body.3.weight``, and so on."""
    if step := _STEP.fullmatch(part):
        return f"body.{3 * (int(step[2]) - 1) + (step[1] == 'bn')}.{step[3]}"
    if shortcut := _SHORTCUT.fullmatch(part):
        # Where they pool, the convolution is the second; we keep the first place free where they do not.
        shift = f"{prefix}downsample.0.weight" in present
        return f"downsample.{int(shortcut[1]) + shift}.{shortcut[2]}"
    if child := _CHILD.fullmatch(part):
        return f"{CHILDREN.get(child[1], child[1])}.{child[2]}"
    return part


def _torch_leaf(name: str) -> str:
    whole, _, leaf = name.rpartition(".")
    new = LEAVES.get(leaf, leaf)
    return f"{whole}.{new}" if whole else new


def fusions(names: Collection[str]) -> list[str]:
    """The paths of the modules with a ``local_att`` whose first convolution is its first child."""
    return [match[1] for name in names if (match := _FUSION.fullmatch(name))]


def _moved_fusions(names: Collection[str], wanted: Collection[str]) -> dict[str, str]:
    """The fusions that are in one block of checkpoint and network, there as another attribute: new path by old."""
    moved = {}
    ours, theirs = _by_block(fusions(wanted)), _by_block(fusions(names))
    for block, paths in theirs.items():
        if len(paths) == 1 and len(ours.get(block, ())) == 1 and paths != ours[block]:
            moved[paths[0]] = ours[block][0]
    return moved


def _by_block(paths: Collection[str]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for path in paths:
        found[path.rpartition(".")[0]].append(path)
    return found


def _moved(name: str, moved: Mapping[str, str]) -> str:
    path = name
    while path:
        path = path.rpartition(".")[0]
        if path in moved:
            return moved[path] + name.removeprefix(path)
    return name
