"""``aff-deploy optimize``: an ONNX file, without any framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from aff_deploy.cli.console import MODEL_SIDECARS, Steps, claim_output, print_json, table, working
from aff_deploy.cli.options import DataPath, GivenData, Json, Mean, Ranges, Scale, Std, read_data_options
from aff_deploy.errors import UsageError

if TYPE_CHECKING:
    import onnx


def optimize(
    source: Annotated[Path, typer.Argument(help="The ONNX file to optimise.", metavar="IN.onnx")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The ONNX file to write.")],
    no_fuse: Annotated[bool, typer.Option("--no-fuse", help="Clean up and fold, but fuse no attention.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="After each pass, compare with the input file on ONNX Runtime.")
    ] = False,
    data: DataPath = None,
    ranges: Ranges = None,
    scale: Scale = None,
    mean: Mean = None,
    std: Std = None,
    convex: Annotated[
        bool, typer.Option("--convex", help="Blend as x w + y (1 - w), which keeps an x that is small beside y; slower.")
    ] = False,
    inline: Annotated[
        bool, typer.Option("--inline", help="Write the operator's body in place of its calls, for runtimes without functions.")
    ] = False,
    plugin: Annotated[
        bool, typer.Option("--plugin", help="Write compiled kernels for the TensorRT plugin into the fused calls.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fold, clean up and fuse an ONNX file."""
    if plugin and no_fuse:
        raise UsageError("--plugin has nothing to write into with --no-fuse", fix="leave one of them out")
    if plugin and inline:
        raise UsageError("--plugin writes into the calls that --inline removes", fix="leave one of them out")
    given_data = read_data_options(data, ranges, scale, mean, std)
    if given_data.anything and not verify:
        raise UsageError("data to compare on is given, and nothing is compared", fix="give --verify too")
    claim_output(output, source, sidecars=MODEL_SIDECARS)
    words = ""
    native: list[dict[str, str]] = []
    carried: tuple[dict[str, Any], ...] = ()
    with Steps() as step, working():
        step(f"read {source.name}")
        from aff_deploy.artifact import sha256
        from aff_deploy.onnx_file import load_onnx, save_onnx
        from aff_deploy.passes import optimize as run_passes

        model = load_onnx(source)
        before = len(model.graph.node)
        verifier = None
        fed = None
        if verify:
            from aff_deploy.verify import PassVerifier

            batches, words = _data_of(model, given_data)
            verifier = PassVerifier(model, batches)
            # Seeded data say nothing of what is lost on real data.
            fed = None if data is None else batches
        step("run the passes" + (", each verified on ONNX Runtime" if verify else ""))
        result = run_passes(model, fuse=not no_fuse, convex=convex, inline=inline, data=fed, after_pass=verifier)
        document, optimised = result.to_dict(), result.model
        if plugin:
            step("compile kernels")
            from aff_deploy.passes.kernels import attach_kernels, list_kernels

            attached = attach_kernels(optimised)
            optimised = attached.model
            native = [{"name": name, "reason": reason} for name, reason in attached.native]
            document["kernels"] = {"sites": list(attached.plugin), "native": native}
            carried = list_kernels(optimised)
        step("write the file")
        document |= {"verified": verify, **({"verified_on": words} if verify else {})}
        if verifier is not None and verifier.weaker:
            document["verified_within_tolerance"] = verifier.weaker
        save_onnx(optimised, output, {"source": {"file": source.name, "sha256": sha256(source)}, **document})
    if as_json:
        print_json(document)
        return
    rows = [(p["name"], p["rewrites"], p["nodes"], f"{1000 * p['seconds']:.0f} ms") for p in document["passes"]]
    print(table(rows, ("pass", "rewrites", "nodes", "time")))
    print_sites(document)
    if plugin:
        print_kernels(carried)
        if native:
            print(f"calls left native: {len(native)}")
            print(table([(site["name"], site["reason"]) for site in native]))
    if result.convex:
        print(f"blends that keep a small x: {len(result.convex)}")
    proven = "" if verifier is None else f", verified after each pass ({words})"
    if verifier is not None and verifier.weaker:
        proven += f" within the tolerance only: {verifier.weaker}"
    print(f"{output}: {before} nodes before, {len(result.model.graph.node)} after{proven}")


def _data_of(model: onnx.ModelProto, given: GivenData) -> tuple[Sequence[Mapping[str, Any]], str]:
    """What to compare passes on, and what to call it."""
    from aff_deploy.engine.interface import tensor_specs
    from aff_deploy.runtimes.feeds import describe_seeded
    from aff_deploy.verify import seeded_batches

    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = given.ranged(tensor_specs(value for value in model.graph.input if value.name not in constants))
    loaded = given.load(inputs)
    if loaded is not None:
        return loaded.batches, loaded.described
    return seeded_batches(inputs), describe_seeded(inputs)


def print_sites(document: Mapping[str, Any]) -> None:
    """What was or would be fused, and what was refused."""
    fusions, rejected = document["fusions"], document["rejected"]
    print(f"fusions: {len(fusions) or 'none'}")
    keys = ("name", "kind", "channels", "inter_channels", "scale", "activation", "context", "branches")
    if fusions:
        print(table([[_cell(site, key) for key in keys] for site in fusions], keys))
    if rejected:
        print(f"refused: {len(rejected)}")
        print(table([(site["name"], site["reason"]) for site in rejected]))


def print_kernels(carried: Sequence[Mapping[str, Any]]) -> None:
    """Which calls carry kernels for TensorRT's plugin; an iAFF is two calls."""
    print(f"calls with kernels for the plugin: {len(carried) or 'none'}")
    if carried:
        rows = [
            (
                one["name"],
                ", ".join(one["dtypes"]),
                ", ".join(f"sm_{capability}" for capability in one["capabilities"]),
                f"contract {one['contract']}",
            )
            for one in carried
        ]
        print(table(rows))


def _cell(site: Mapping[str, Any], key: str) -> object:
    value = site.get(key)
    if key == "branches":
        # The quirk of the PyTorch port: its weights are right only with it, so it must be seen.
        return "+".join(value or ()) + (", global shared" if site.get("share_global") else "")
    return "-" if value is None else value
