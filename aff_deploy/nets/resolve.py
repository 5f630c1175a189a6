"""From the words of a person to a network that is ready to be exported."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from aff_deploy.artifact import check_input, is_input, note_read
from aff_deploy.errors import AffDeployError, NetworkError, WeightsError
from aff_deploy.nets.architectures import FACTORIES
from aff_deploy.nets.checkpoints import LoadedWeights, load_weights
from aff_deploy.nets.deployable import require_deployable, require_evaluating, unwrap
from aff_deploy.recipe import Recipe, bundled_recipes, find_recipe
from aff_deploy.spec import TensorSpec

SHOWN_LENGTH = 80
MAX_SOURCE_BYTES = 16 * 2**20
OURS = "aff_deploy.nets"
SEED = 0
"""Of the initialisation, so that a network without weights is the same network every time."""


@dataclass(frozen=True)
class Network:
    """A network to deploy.

    Attributes:
        name: the recipe's name, or the callable's.
        module: in eval mode, no parameter requiring a gradient.
        inputs: what it takes; empty where neither caller nor recipe said.
        recipe: where it came from, if from one.
        weights: the file its weights came from; None where they are the seeded initialisation.
        loaded: what loading that file found and chose.
    """

    name: str
    module: nn.Module
    inputs: tuple[TensorSpec, ...]
    recipe: Recipe | None = None
    weights: Path | None = None
    loaded: LoadedWeights | None = None


def resolve_network(
    reference: str,
    *,
    weights: Path | None = None,
    inputs: Sequence[TensorSpec] = (),
    arguments: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
) -> Network:
    """Build the network that `reference` means.

    Args:
        reference: a bundled name, the path of a recipe, ``package.module:callable`` (the current folder
            is importable) or ``file.py:callable``. The callable returns an ``nn.Module``, or is one.
        weights: a weights file to use instead of the recipe's.
        inputs: inputs to use instead of the recipe's.
        arguments: keyword arguments of the callable, before the recipe's of the same name.
        weights_key: in a PyTorch file, `weights` or the recipe's, under which name the state dict lies.

    Raises:
        NetworkError: no such network, or it cannot be imported or built.
        RecipeError: the recipe is faulty.
        WeightsError: the weights do not fit, or are not those the recipe was made with.
    """
    recipe = find_recipe(reference)
    if recipe is not None:
        return network_of_recipe(recipe, weights=weights, inputs=inputs, arguments=arguments, weights_key=weights_key)
    if ":" not in reference:
        raise _unknown(reference)
    module = _build(reference, Path(), arguments or {})
    if weights is None and weights_key is not None:
        raise _no_weights(weights_key)
    said = _said(arguments)
    loaded = load_weights(module, weights, key=weights_key, share_global=said) if weights is not None else None
    name = reference.rpartition(":")[2].rpartition(".")[2]
    return Network(name, _frozen(module), tuple(inputs), None, weights, loaded)


def network_of_recipe(
    recipe: Recipe,
    *,
    weights: Path | None = None,
    inputs: Sequence[TensorSpec] = (),
    arguments: Mapping[str, Any] | None = None,
    weights_key: str | None = None,
) -> Network:
    """Build the network that `recipe` describes; what is given replaces the recipe's, each of the `arguments` by name.

    Raises:
        NetworkError, WeightsError: as `resolve_network`.
    """
    every = {**recipe.arguments, **(arguments or {})}
    module = _build(recipe.network, recipe.folder, every)
    loaded, said = None, _said(every)
    if weights is not None:
        loaded = load_weights(module, weights, key=weights_key, share_global=said)
    elif recipe.weights is not None:
        weights, key = recipe.weights, weights_key or recipe.weights_key or None
        loaded = load_weights(module, weights, sha256=recipe.weights_sha256 or None, key=key, share_global=said)
    elif weights_key is not None:
        raise _no_weights(weights_key)
    taken = _with_ranges(inputs, recipe.inputs) or recipe.inputs
    return Network(recipe.name, _frozen(module), taken, recipe, weights, loaded)


def _said(arguments: Mapping[str, Any] | None) -> bool | None:
    """What the person says of the iAFFs' second global branch, which goes before what a file tells."""
    said = (arguments or {}).get("share_global")
    return said if isinstance(said, bool) else None


def _no_weights(key: str) -> WeightsError:
    return WeightsError(f"there is no weights file to take {key!r} from", fix="give --weights FILE with --key")


def _frozen(module: nn.Module) -> nn.Module:
    module.eval()
    require_evaluating(module)
    return module.requires_grad_(False)


def _with_ranges(inputs: Sequence[TensorSpec], described: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """`inputs` with what a recipe says of the values of inputs of the same name and dtype."""
    drawn = {(spec.name, spec.dtype): spec.distribution for spec in described}
    return tuple(replace(spec, distribution=spec.distribution or drawn.get((spec.name, spec.dtype))) for spec in inputs)


def _unknown(reference: str) -> NetworkError:
    if os.path.exists(reference):
        return NetworkError(
            f"{reference} is not a network", fix="give a bundled name, a recipe.toml, module:callable or file.py:callable"
        )
    names = list(bundled_recipes())
    others = {name: f"{OURS}:{name}" for name in sorted(factory.__name__ for factory in FACTORIES) if name not in names}
    if reference in others:
        return NetworkError(f"{reference} is no bundled recipe, but a callable", fix=f"give {others[reference]}")
    near = [others.get(name, name) for name in difflib.get_close_matches(reference, [*names, *others], n=3, cutoff=0.6)]
    known = f"did you mean {', '.join(near)}?" if near else f"the bundled ones are {', '.join(names)}"
    return NetworkError(f"there is no network {reference!r}", fix=f"{known} (or give a recipe.toml or module:callable)")


def _build(reference: str, folder: Path, arguments: Mapping[str, Any]) -> nn.Module:
    """Import what `reference` names and call it; ``file.py`` is relative to `folder`."""
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise NetworkError(f"cannot read network {reference!r}", fix="write module:callable or file.py:callable")
    is_file = source.endswith(".py")
    place = Path(os.path.realpath(folder / source)).parent if is_file else Path.cwd()
    with _importable(place):
        module = _import_file(folder / source) if is_file else _import_module(source)
        factory = _attribute(module, source, name)
        if isinstance(factory, nn.Module):
            if arguments:
                raise NetworkError(f"{reference} is a module, which takes no arguments", fix="name the callable that builds it")
            return _usable(factory)
        if not callable(factory):
            raise NetworkError(f"{reference} is a {type(factory).__name__}", fix="name a callable that returns an nn.Module")
        network = _call(factory, reference, arguments)
    _note_sources(place)
    if not isinstance(network, nn.Module):
        raise NetworkError(f"{reference} returned a {type(network).__name__}, not a torch.nn.Module", fix="return the network")
    return _usable(network)


def _usable(module: nn.Module) -> nn.Module:
    inner = unwrap(module)
    require_deployable(inner)
    return inner


def _note_sources(folder: Path) -> None:
    """Note that the Python files below `folder` that are imported are read, so that no output replaces them."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and Path(file).is_relative_to(folder) and is_input(Path(file)):
            note_read(Path(file))


def _call(factory: Any, reference: str, arguments: Mapping[str, Any]) -> Any:
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(SEED)
            return factory(**arguments)
    except AffDeployError:
        raise
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{key}={value!r}"[:SHOWN_LENGTH] for key, value in arguments.items())
        said, check = (f" with {given}", "check the arguments, or ") if given else ("", "")
        raise NetworkError(
            f"{reference} could not build its network{said}: {_cause(error)}", fix=f"{check}see --debug for where"
        ) from error


@contextlib.contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules in `folder` be found first while the block runs."""
    entry = os.fspath(folder)
    sys.path.insert(0, entry)
    former = sys.dont_write_bytecode
    # Or a folder __pycache__ would appear beside somebody's source.
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = former
        with contextlib.suppress(ValueError):
            sys.path.remove(entry)


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except AffDeployError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise NetworkError(
                f"there is no module {error.name!r}",
                fix="install it, run from the folder that holds it, or give file.py:callable",
            ) from error
        raise NetworkError(f"cannot import {name}: {_cause(error)}", fix="install what it needs") from error
    except (Exception, SystemExit) as error:
        raise NetworkError(f"cannot import {name}: {_cause(error)}", fix="see --debug for where") from error


def _import_file(path: Path) -> ModuleType:
    path = Path(os.path.realpath(path))
    fix = "give file.py:callable with the path of a Python file"
    check_input(path, what="network", error=NetworkError, most=MAX_SOURCE_BYTES, fix=fix)
    name = f"{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise NetworkError(f"cannot import {path}", fix="give the path of a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except AffDeployError:
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        sys.modules.pop(name, None)
        raise NetworkError(f"cannot import {path}: {_cause(error)}", fix="see --debug for where") from error
    return module


def _attribute(module: ModuleType, source: str, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, [key for key in dir(found) if not key.startswith("_")], n=3, cutoff=0.4)
            fix = f"did you mean {', '.join(near)}?" if near else "name a callable that the module defines"
            raise NetworkError(f"{source} has no {name!r}", fix=fix)
        found = getattr(found, part)
    return found


def _cause(error: BaseException) -> str:
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # its own text is somebody's code too
        lines = []
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
