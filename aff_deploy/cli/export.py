"""``aff-deploy export``: a network to ONNX."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from aff_deploy.cli.console import MODEL_SIDECARS, Steps, claim_output, print_json, working
from aff_deploy.cli.options import (
    NETWORK,
    Arguments,
    DataPath,
    Given,
    Json,
    Key,
    Mean,
    Ranges,
    Scale,
    Std,
    Weights,
    complete_recipe,
    read_arguments,
    read_data_options,
)
from aff_deploy.errors import UsageError
from aff_deploy.spec import TensorSpec, apply_dynamic

MOST_COMPARED = 128
"""Samples of given data; `validate` compares on all."""


class Exporter(str, Enum):
    """PyTorch's two ways to ONNX."""

    dynamo = "dynamo"
    torchscript = "torchscript"


def export(
    network: Annotated[
        str, typer.Argument(help=f"What to export: {NETWORK}.", metavar="NETWORK", autocompletion=complete_recipe)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The ONNX file to write.")],
    weights: Weights = None,
    arguments: Arguments = None,
    key: Key = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME:1x3x224x224[:float32]", help="An input; repeat for several.")
    ] = None,
    dynamic: Annotated[
        list[str] | None, typer.Option("--dynamic", metavar="NAME:0=batch[,2=h,3=w]", help="Dimensions to keep free.")
    ] = None,
    opset: Annotated[int | None, typer.Option("--opset", metavar="N", help="13 to 20 (default: the recipe's, or 18).")] = None,
    exporter: Annotated[
        Exporter | None, typer.Option("--exporter", help="PyTorch's exporter (default: the recipe's, or dynamo).")
    ] = None,
    data: DataPath = None,
    ranges: Ranges = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    as_json: Json = False,
) -> None:
    """Turn a network into ONNX, proven against PyTorch."""
    claim_output(output, sidecars=MODEL_SIDECARS)
    specs = tuple(TensorSpec.parse(text) for text in inputs or ())
    given = Given(weights, read_arguments(arguments), key)
    given_data = read_data_options(data, ranges, scale, mean, std)
    notes: list[str] = []
    with Steps() as step, working():
        step("load the network")
        from aff_deploy.export import export_onnx
        from aff_deploy.onnx_file import save_onnx
        from aff_deploy.recipe import ExportSettings
        from aff_deploy.runtimes.feeds import describe_seeded

        found = given.resolve(network, specs)
        if not found.inputs:
            raise UsageError(f"nothing says what inputs {network} takes", fix="give them with --input NAME:1x3x224x224")
        taken = given_data.ranged(apply_dynamic(found.inputs, dynamic or ()))
        loaded = given_data.load(taken, found.recipe, limit=MOST_COMPARED)
        words = describe_seeded(taken) if loaded is None else loaded.described
        batches = () if loaded is None else loaded.batches
        settings = found.recipe.export if found.recipe is not None else ExportSettings()
        chosen, way = opset or settings.opset, exporter.value if exporter is not None else settings.exporter
        step(f"export to ONNX ({way}, opset {chosen}) and compare with PyTorch")
        model = export_onnx(found.module, taken, opset=chosen, exporter=way, data=batches, note=notes.append)
        step("write the file")
        facts = {
            "network": network,
            "weights": None if found.weights is None else found.weights.name,
            **({"arguments": given.arguments} if given.arguments else {}),
            "exporter": way,
            "opset": chosen,
            "inputs": [spec.text for spec in taken],
            "compared_on": words,
            "notes": notes,
        }
        artifact = save_onnx(model, output, facts)
    if as_json:
        print_json({"file": str(artifact.path), **artifact.manifest})
        return
    shapes = ", ".join(spec.text for spec in taken)
    origin = f"weights from {found.weights.name}" if found.weights is not None else "weights as its code made them, none given"
    print(f"{artifact.path}: {found.name} ({origin}), {len(model.graph.node)} nodes, inputs {shapes}")
    print(f"  {notes[0]} ({words})")
    for line in notes[1:]:
        print(f"  note: {line}")
