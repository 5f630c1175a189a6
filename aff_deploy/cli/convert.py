"""``aff-deploy convert-weights``: anyone's checkpoint to safetensors under the names of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from aff_deploy.cli.console import Steps, claim_output, working
from aff_deploy.cli.options import NETWORK, Arguments, Key, read_arguments
from aff_deploy.errors import UsageError

SUFFIX = ".safetensors"


def convert_weights(
    source: Annotated[
        Path, typer.Argument(help="Weights: .safetensors, a PyTorch file, or the authors' .params.", metavar="IN")
    ],
    output: Annotated[Path, typer.Argument(help="The safetensors file to write.", metavar="OUT.safetensors")],
    network: Annotated[str, typer.Option("--network", metavar="NETWORK", help=f"Whose weights they are: {NETWORK}.")],
    arguments: Arguments = None,
    key: Key = None,
) -> None:
    """Write a network's weights as safetensors."""
    if output.suffix != SUFFIX:
        raise UsageError(f"{output} is no name of a safetensors file", fix=f"give a name that ends in {SUFFIX}")
    claim_output(output, source)
    given = read_arguments(arguments)
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
