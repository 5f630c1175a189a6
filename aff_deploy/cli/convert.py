"""``aff-deploy convert-weights``: anyone's checkpoint to safetensors under the names of a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from aff_deploy.artifact import check_writable
from aff_deploy.cli.console import Steps, working
from aff_deploy.cli.options import NETWORK
from aff_deploy.errors import UsageError

SUFFIX = ".safetensors"


def convert_weights(
    source: Annotated[
        Path, typer.Argument(help="Weights: .safetensors, a PyTorch file, or the authors' .params.", metavar="IN")
    ],
    output: Annotated[Path, typer.Argument(help="The safetensors file to write.", metavar="OUT.safetensors")],
    network: Annotated[str, typer.Option("--network", metavar="NETWORK", help=f"Whose weights they are: {NETWORK}.")],
    arguments: Annotated[
        list[str] | None,
        typer.Option("--arguments", metavar="KEY=VALUE", help="An argument of the network (JSON); repeat for several."),
    ] = None,
    key: Annotated[
        str | None, typer.Option("--key", metavar="NAME", help="In a PyTorch file, where the weights lie, such as model_ema.")
    ] = None,
) -> None:
    """Write a network's weights as safetensors."""
    if output.suffix != SUFFIX:
        raise UsageError(f"{output} is no name of a safetensors file", fix=f"give a name that ends in {SUFFIX}")
    if output.resolve() == source.resolve():
        raise UsageError(f"{output} is the input itself", fix="give another name")
    check_writable(output)
    given = _arguments(arguments or ())
    with Steps() as step, working():
        step("load the network and the weights")
        from aff_deploy.nets.resolve import resolve_network
        from aff_deploy.nets.saving import save_weights
        from aff_deploy.nets.sharing import sharing_of

        found = resolve_network(network, weights=source, arguments=given, weights_key=key)
        said = {**(found.recipe.arguments if found.recipe is not None else {}), **given}
        # Recorded only where it is known: a default is no statement about these weights.
        known = "share_global" in said or (found.loaded is not None and found.loaded.share_global is not None)
        shared = sharing_of(found.module) if known else None
        step("write the file and read it again")
        written = save_weights(found.module, output, network=found.name, source=source.name, share_global=shared)
    print(f"{output}: {found.name}, sha256 {written.manifest['sha256']}")
    if found.loaded is not None:
        print(f"  {found.loaded.tensors} tensors from {source.name} ({found.loaded.format})")
        for note in found.loaded.notes:
            print(f"  {note}")


def _arguments(words: Sequence[str]) -> dict[str, Any]:
    """``layers=[1,1,1,1]`` and the like; what is not JSON is text."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name.isidentifier() or name in found:
            raise UsageError(f"cannot read --arguments {word!r}", fix="write KEY=VALUE, each key once, such as num_classes=10")
        try:
            found[name] = json.loads(text)
        except (ValueError, RecursionError):
            found[name] = {"True": True, "False": False}.get(text, text)
    return found
