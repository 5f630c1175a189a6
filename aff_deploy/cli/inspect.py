"""``aff-deploy inspect``: what a file holds, without any framework and without a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from aff_deploy.cli.console import print_json, table, working
from aff_deploy.cli.failures import Failure
from aff_deploy.cli.graph import print_kernels, print_sites
from aff_deploy.cli.options import Json
from aff_deploy.spec import write_shape


def inspect(
    file: Annotated[
        Path, typer.Argument(help="An ONNX file, an engine, or a folder that deploy wrote.", metavar="FILE|FOLDER")
    ],
    as_json: Json = False,
) -> None:
    """Show what a file or a deployment holds, and what would be fused."""
    with working():
        from aff_deploy.engine_file import describe_engine, is_engine

        if file.is_dir():
            from aff_deploy.cli.folder import describe_folder, print_folder

            show, document = print_folder, describe_folder(file)
        elif is_engine(file):
            show, document = _print_engine, describe_engine(file)
        else:
            show, document = _print_model, _describe_model(file)
    problem = document.get("problem")
    if as_json:
        failure = Failure("EngineError", problem, document["fix"] or "", 3) if problem else None
        print_json({**document, **({"error": failure.to_dict()} if failure else {})})
    else:
        show(file, document)
    if problem:
        raise typer.Exit(3)


def _describe_model(file: Path) -> dict[str, Any]:
    from aff_deploy.artifact import read_manifest
    from aff_deploy.onnx_file import load_onnx
    from aff_deploy.passes import inspect_model
    from aff_deploy.passes.kernels import list_kernels

    model = load_onnx(file)
    opset = next((entry.version for entry in model.opset_import if not entry.domain), None)
    return {
        "file": str(file),
        "opset": opset,
        "ir_version": model.ir_version,
        **inspect_model(model),
        "kernels": list(list_kernels(model)),
        "manifest": read_manifest(file),
    }


def _print_model(file: Path, document: Mapping[str, Any]) -> None:
    print(f"{file}: opset {document['opset'] or '?'}, IR {document['ir_version']}")
    for kind in ("inputs", "outputs"):
        print(f"{kind}:")
        print(table([(value["name"], _shape(value["shape"]), value["dtype"]) for value in document[kind]]))
    print("operators:")
    print(table(Counter(document["ops"]).most_common()))
    print_sites(document)
    if document["kernels"]:
        print_kernels(document["kernels"])
    manifest = document["manifest"]
    if manifest is not None:
        source = manifest.get("source", {})
        made_from = source.get("file") or source.get("recipe") or manifest.get("network") or "unknown"
        print(f"manifest: made from {made_from}, sha256 {manifest['sha256'][:16]}..., the file is unchanged since")


def _shape(shape: Sequence[int | str | None] | None) -> str:
    if shape is None:
        return "unknown"
    return "x".join("?" if size is None else write_shape((size,)) for size in shape) or "scalar"


def _print_engine(file: Path, document: Mapping[str, Any]) -> None:
    print(f"{file}: engine of {document['written_by'] or 'an unknown library'}, {document['bytes']} bytes")
    facts = document["manifest"]
    if facts is not None:
        precision, profiles = facts["precision"], facts["profiles"]
        rows: list[tuple[str, object]] = [
            ("built by", f"{facts['backend']} {facts['library_version']}, from {facts['onnx'].get('file') or 'a network'}"),
            ("GPUs", f"compute capability {', '.join(facts['compute_capabilities'])}"),
            ("precision", f"{precision['asked']} asked, {precision['proven'] or 'none'} proven{_counted(precision)}"),
            ("weights", f"{facts['weights_bytes']} bytes"),
        ]
        rows += [("options", f"{name} {value}") for name, value in facts["options"].items()]
        for kind in ("inputs", "outputs"):
            rows += [(kind[:-1], f"{v['name']} {write_shape(v['shape'])} {v['dtype']}") for v in facts[kind]]
        for profile in profiles:
            for name in profile["opt"]:
                sizes = (f"{bound} {'x'.join(map(str, profile[bound][name]))}" for bound in ("min", "opt", "max"))
                rows.append(("profile", f"{name}: {', '.join(sizes)}"))
        rows += [("seconds", ", ".join(f"{stage} {seconds}" for stage, seconds in facts["seconds"].items()))]
        print(table(rows))
        kept = facts["typed"].get("kept_wide", ())
        print(table([("kept fp32", f"{site.get('name')}: {site.get('reason')}") for site in kept]), end="\n" if kept else "")
    if document["proven"] is not None:
        for check in document["proven"]["checks"]:
            passed = "ok" if check.get("passed") is True else "FAILED"
            what, on, against = (check.get(key, "?") for key in ("what", "on", "against"))
            print(f"  checked: {what} on {on}, against {against}: {passed}{_largest(check)}")
        if not any(check.get("what") == "engine" for check in document["proven"]["checks"]):
            print("  not run: the engine itself was checked by no run, which takes a GPU that it was built for")
    if document["problem"]:
        print(f"  NOT LOADABLE: {document['problem']}; {document['fix']}")
    else:
        print("  intact: the file is the one that its manifest describes")


def _largest(check: Mapping[str, Any]) -> str:
    outputs = [output for output in check.get("outputs", ()) if output.get("max_abs") is not None]
    if not outputs:
        return ""
    worst = max(outputs, key=lambda output: output["max_abs"] / (output["scale"] or 1.0))
    return f", {worst['name']!r} differs by at most {worst['max_abs']:.2g} at scale {worst['scale']:.3g}"


def _counted(precision: Mapping[str, Any]) -> str:
    proof = precision.get("proof")
    if not isinstance(proof, Mapping):
        return ""
    wide = len(proof["wide_by_design"])
    return f": {proof['in_precision']} of {proof['nodes']} convolutions and products" + (
        f", {wide} wide by design" if wide else ""
    )
