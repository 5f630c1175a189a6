"""A folder that ``deploy`` wrote: what is in it, what was proven of each file, and whether it is still that file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aff_deploy.artifact import FOLDER_MANIFEST, is_input, read_json, sha256
from aff_deploy.cli.console import table
from aff_deploy.engine_file import describe_engine
from aff_deploy.errors import InputError
from aff_deploy.report.verdicts import headline, judge

AGAIN = "deploy it again: aff-deploy deploy RECIPE -o DIR"


def describe_folder(folder: Path) -> dict[str, Any]:
    """The document of ``inspect FOLDER --json``.

    Returns:
        ``folder``; ``manifest``, the content of its ``manifest.json``; ``headline`` and ``verdicts``, what was proven when it
        was deployed; ``files``, for each ``file`` its ``state``, ``intact``, ``altered`` or ``missing``; ``engine``, as
        `describe_engine` has it, or None; ``problem`` and ``fix``, None where every file is what was deployed.

    Raises:
        InputError: the folder is no deployment, or its manifest is not as ``deploy`` writes it.
    """
    manifest = _read_manifest(folder)
    try:
        verdicts = judge(manifest)
        model, built = folder / _plain(manifest["model"]["file"]), manifest["engine"]["built"]
        states = {model.name: _state(model, manifest["model"]["sha256"])}
        document = {"folder": str(folder), "manifest": manifest, "headline": headline(verdicts)[1]}
        engine = None
        if built:
            path = folder / _plain(manifest["engine"]["file"])
            engine = describe_engine(path) if path.is_file() else None
            states[path.name] = _state(path, manifest["engine"]["sha256"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder / FOLDER_MANIFEST} is not as deploy writes it ({reason})", fix=AGAIN) from None
    wrong = [f"{name} is {state}" for name, state in states.items() if state != "intact"]
    problem, fix = (f"{folder}: {', '.join(wrong)}", AGAIN) if wrong else (None, None)
    if not wrong and engine is not None and engine["problem"]:
        problem, fix = engine["problem"], engine["fix"]
    return {
        **document,
        "verdicts": [asdict(verdict) for verdict in verdicts],
        "files": [{"file": name, "state": state} for name, state in states.items()],
        "engine": engine,
        "problem": problem,
        "fix": fix,
    }


def print_folder(file: Path, document: Mapping[str, Any]) -> None:
    manifest = document["manifest"]
    print(f"{file}: deployment of {manifest['name']}, made {manifest['created']} on {manifest['platform']}")
    states = {file["file"]: file["state"] for file in document["files"]}
    rows = [(v["file"], states[v["file"]], v["state"], v["words"]) for v in document["verdicts"]]
    print(table(rows, ("file", "now", "when deployed", "")))
    if not manifest["engine"]["built"]:
        print(f"  no engine: {manifest['engine']['why']}")
    for verdict in document["verdicts"]:
        if verdict["why_not_run"]:
            print(f"  {verdict['file']} was not run: {verdict['why_not_run']}")
    print(f"  {document['headline']}")
    if document["problem"]:
        print(f"  NOT AS DEPLOYED: {document['problem']}; {document['fix']}")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / FOLDER_MANIFEST
    if not is_input(path):
        inside = sorted(p.name for p in folder.iterdir() if p.suffix in (".onnx", ".engine"))[:3]
        fix = f"give a file in it, such as {folder / inside[0]}" if inside else "give a folder that aff-deploy deploy wrote"
        raise InputError(f"{folder} is a folder, and no deployment: it has no {FOLDER_MANIFEST}", fix=fix)
    return read_json(path, what="manifest", fix=AGAIN)


def _plain(name: object) -> str:
    """A name inside the folder: what lies elsewhere is not the deployment's."""
    if not isinstance(name, str) or Path(name).name != name:
        raise ValueError(f"{name!r} is no name of a file")
    return name


def _state(path: Path, expected: str) -> str:
    if not is_input(path):
        return "missing"
    return "intact" if sha256(path) == expected else "altered"
