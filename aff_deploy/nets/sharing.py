"""Which global branch the second fusion of an iAFF uses: the one thing that names and shapes do not tell.

The PyTorch port, and most copies of it, compute the second global context with the *first*
``global_att``; their ``global_att2`` is in the checkpoint and in nothing else. The authors' MXNet
code uses ``global_att2``. Run the other way, a checkpoint loads without complaint and is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from aff_deploy.nets.fusion import iAFF

NORMS = ("2", "5")
"""The two BatchNorms of a global branch."""


def dead_names(net: nn.Module) -> set[str]:
    """The parameters and buffers of `net` that take part in nothing: a checkpoint may lack all of them."""
    return _seconds({path: module for path, module in _iaffs(net).items() if module.share_global})


def second_branches(net: nn.Module) -> set[str]:
    """The parameters and buffers of every ``global_att2`` in `net`."""
    return _seconds(_iaffs(net))


def settle_sharing(
    net: nn.Module, found: Mapping[str, Tensor], origin: str, recorded: bool | None, said: bool | None = None
) -> tuple[bool | None, list[str]]:
    """Set ``share_global`` of every iAFF in `net` where the origin of its weights tells what it must be.

    What tells it: that the file has no ``global_att2`` (shared); what a file of ours records; MXNet's
    names (not shared); and that training never reached ``global_att2`` (shared), which shows in the
    counters and statistics of its BatchNorms being at their start while those of ``global_att`` have
    moved on. A checkpoint with the names of the PyTorch port is taken as shared unless its
    ``global_att2`` *was* reached.

    Args:
        net: the network; only this project's iAFF modules are looked at.
        found: the weights, by the network's names.
        origin: ``mxnet`` or ``port`` where the names of the file tell it, else empty.
        recorded: what the file records, if it is ours.
        said: what the person says; then nothing is set, and a file that tells otherwise gets a line.

    Returns:
        What was settled, None where nothing tells, and lines for people about it.
    """
    modules = _iaffs(net)
    if not modules:
        return None, []
    there = {path: module for path, module in modules.items() if _has_second(found, path)}
    shared, why = _told(there, found, origin, recorded)
    if said is not None:
        otherwise = f"share_global={said} as given, though {why}, which means {shared}"
        return None, [otherwise] if shared is not None and shared is not said else []
    if shared is None:
        return None, _assumed(there, found)
    modules = there or modules
    changed = any(module.share_global is not shared for module in modules.values())
    for module in modules.values():
        module.share_global = shared
    was = f"; the network was built with {not shared}" if changed else ""
    return shared, [f"share_global={shared} in {len(modules)} iAFF modules: {why}{was}"]


def _told(
    modules: Mapping[str, iAFF], found: Mapping[str, Tensor], origin: str, recorded: bool | None
) -> tuple[bool | None, str]:
    """What the file tells of `modules`, those whose ``global_att2`` it has, and how; None where it does not."""
    if not modules:
        return True, "the file has no global_att2"
    if recorded is not None:
        return recorded, "the file records it"
    if origin == "mxnet":
        return False, "the weights are of the authors' MXNet code"
    if all(not _reached(found, path, "global_att2") and _reached(found, path, "global_att") for path in modules):
        return True, "training reached global_att but never global_att2, as in the PyTorch port"
    if origin == "port" and not any(_counted(found, path, "global_att2") for path in modules):
        return True, "the names are those of the PyTorch port"
    return None, ""


def _assumed(modules: Mapping[str, iAFF], found: Mapping[str, Tensor]) -> list[str]:
    """What to say where the network's own argument stays."""
    kinds = {module.share_global for module in modules.values()}
    if len(kinds) > 1:
        return []  # A network that mixes them knows why.
    shared = kinds.pop()
    counted = all(any(map(_any, _norms(found, path, "global_att2", "num_batches_tracked"))) for path in modules)
    if counted and not shared:
        return []  # Training ran global_att2, and so does the network.
    why = "training ran global_att2, which this network does not use" if counted else "nothing in the file tells it"
    choose = f"--arguments share_global={str(not shared).lower()}"
    return [f"share_global={shared} was assumed, as the network was built: {why}; for the other, give {choose}"]


def sharing_of(net: nn.Module) -> bool | None:
    """The ``share_global`` that all iAFF modules of `net` have; None where there are none, or both kinds."""
    kinds = {module.share_global for module in _iaffs(net).values()}
    return kinds.pop() if len(kinds) == 1 else None


def _iaffs(net: nn.Module) -> dict[str, iAFF]:
    return {path: module for path, module in net.named_modules() if isinstance(module, iAFF)}


def _seconds(modules: Mapping[str, iAFF]) -> set[str]:
    return {
        f"{path}.{name}" if path else name
        for path, module in modules.items()
        for name in module.state_dict()
        if name.startswith("global_att2.")
    }


def _has_second(found: Mapping[str, Tensor], path: str) -> bool:
    prefix = f"{path}.global_att2." if path else "global_att2."
    return any(name.startswith(prefix) for name in found)


def _any(count: Tensor) -> bool:
    return bool((count != 0).any())


def _norms(found: Mapping[str, Tensor], path: str, branch: str, leaf: str) -> list[Tensor]:
    prefix = f"{path}.{branch}" if path else branch
    return [found[name] for norm in NORMS if (name := f"{prefix}.{norm}.{leaf}") in found]


def _counted(found: Mapping[str, Tensor], path: str, branch: str) -> bool:
    """Whether the BatchNorms of a branch have counted steps of training; without counters, whether they moved."""
    steps = _norms(found, path, branch, "num_batches_tracked")
    return any(map(_any, steps)) if steps else _reached(found, path, branch)


def _reached(found: Mapping[str, Tensor], path: str, branch: str) -> bool:
    """Whether anything in the BatchNorms of a branch shows a step of training."""
    starts = (("num_batches_tracked", 0), ("running_mean", 0), ("running_var", 1))
    return any(bool((value != start).any()) for leaf, start in starts for value in _norms(found, path, branch, leaf))
