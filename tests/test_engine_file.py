"""An engine is loaded with the manifest it was written with, unchanged, or refused with a reason of its own."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aff_deploy.artifact import MAX_JSON
from aff_deploy.engine_file import (
    check_engine,
    describe_engine,
    load_engine,
    read_engine_manifest,
    write_engine,
)
from aff_deploy.engine_file.manifest import HEAD_BYTES
from aff_deploy.errors import EngineError, ModelError
from aff_deploy.spec import Precision, TensorSpec
from tests.engines import ONNX, PLAN, engine_facts, write_test_engine


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    path = tmp_path / "m.engine"
    write_test_engine(path)
    return path


def beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads(beside(path).read_text())
    change(manifest)
    beside(path).write_text(json.dumps(manifest))


def seal(path: Path) -> None:
    """What a patient forger does, to reach the checks behind the seal."""

    def again(manifest: dict[str, Any]) -> None:
        del manifest["seal"]
        text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
        manifest["seal"] = hashlib.sha256(text.encode()).hexdigest()

    edit(path, again)


def test_what_was_written_is_read(engine: Path) -> None:
    loaded = load_engine(engine)
    assert loaded.plan == PLAN
    manifest = loaded.manifest
    assert (manifest.backend, manifest.library_version) == ("tensorrt-rtx", "1.7.1.116")
    assert (manifest.asked, manifest.proven) == (Precision.FP16, Precision.FP16)
    assert manifest.inputs == (TensorSpec("x", ("n", 3), "float32", (4, 3)),)
    assert manifest.outputs == (TensorSpec("y", ("n", 3)),)
    assert manifest.profiles[0].max == {"x": (8, 3)}
    assert manifest.facts["head_sha256"] == hashlib.sha256(PLAN[:HEAD_BYTES]).hexdigest()
    assert manifest.facts["checks"][0]["on"] == "typed ONNX, CPU"
    everything = {"backend": "tensorrt-rtx", "library_version": "1.7.1.116", "precision": Precision.FP16}
    onnx = engine.with_name("m.onnx")
    assert check_engine(engine, onnx=onnx, compute_capability=(8, 9), **everything) == manifest  # type: ignore[arg-type]


def test_a_pair_may_be_renamed_and_moved(engine: Path, tmp_path: Path) -> None:
    moved = tmp_path / "away" / "other.plan"
    moved.parent.mkdir()
    beside(engine).rename(beside(moved))
    engine.rename(moved)
    assert load_engine(moved).plan == PLAN


def test_reformatting_a_manifest_is_no_edit(engine: Path) -> None:
    edit(engine, lambda manifest: manifest.update(sorted(manifest.items())))
    assert load_engine(engine).plan == PLAN


def swap(path: Path) -> None:
    other = path.with_name("other.engine")
    write_test_engine(other, plan=PLAN[:4] + PLAN[:4] + PLAN[8:])
    other.replace(path)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no engine": (Path.unlink, "does not exist"),
    "no manifest": (lambda p: beside(p).unlink(), "has no manifest m.engine.json beside it"),
    "not JSON": (lambda p: beside(p).write_bytes(b'{"backend"'), "is not JSON"),
    "not text": (lambda p: beside(p).write_bytes(b"\xff\xfe{}"), "is not JSON"),
    "deep JSON": (lambda p: beside(p).write_text("[" * 100_000), "is not JSON"),
    "not a number": (lambda p: beside(p).write_text('{"a": NaN}'), "NaN is no JSON number"),
    "a list": (lambda p: beside(p).write_text("[]"), "is not a JSON object"),
    "too large": (lambda p: beside(p).write_bytes(b" " * (MAX_JSON + 1)), "more than the"),
    "an ONNX file's manifest": (lambda p: beside(p).write_text('{"format": 1, "file": "m.onnx"}'), "'sha256' is missing"),
    "a wrong type": (lambda p: edit(p, lambda m: m.update(bytes=True)), "'bytes' is a bool, not a int"),
    "a later format": (lambda p: edit(p, lambda m: m.update(format=2)), "its format is 2"),
    "no checks": (lambda p: edit(p, lambda m: m.update(checks=["x"])), "'checks' is not a list of objects"),
    "checks of no words": (lambda p: edit(p, lambda m: m.update(checks=[{"on": 3}])), "'checks' is not a list"),
    "times that are none": (lambda p: edit(p, lambda m: m.update(seconds={"a": [1]})), "'seconds' holds something else"),
    "sites that are none": (lambda p: edit(p, lambda m: m["typed"].update(kept_wide=[3])), "'typed.kept_wide' is not"),
    "a proof of no numbers": (
        lambda p: edit(p, lambda m: m["precision"].update(proof={"wide_by_design": [], "nodes": "x", "in_precision": 1})),
        "'nodes' is a str, not a int",
    ),
    "an edit by hand": (lambda p: edit(p, lambda m: m["precision"].update(proven="fp32")), "its seal does not fit"),
    "a new field": (lambda p: edit(p, lambda m: m.update(note="")), "its seal does not fit"),
    "an empty engine": (lambda p: p.write_bytes(b""), "m.engine is empty"),
    "a cut engine": (lambda p: p.write_bytes(PLAN[:-1]), f"is cut short: {len(PLAN) - 1} of {len(PLAN)} bytes"),
    "a stub of an engine": (lambda p: p.write_bytes(PLAN[:100]), "is cut short: 100 of"),
    "a swapped engine": (swap, "is another file than the engine"),
    "a swapped longer engine": (lambda p: p.write_bytes(PLAN[::-1] + b"more"), "is another file than the engine"),
    "an altered engine": (lambda p: p.write_bytes(PLAN[:-1] + b"!"), "was altered after it was built"),
    "bytes at the end": (lambda p: p.write_bytes(PLAN + b"!"), "has 1 bytes after the engine's end"),
    "a stale engine": (lambda p: p.with_name("m.onnx").write_bytes(b"new"), "is stale: it was built from another m.onnx"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_refused_with_a_message_of_its_own(engine: Path, case: str) -> None:
    damage, message = DAMAGE[case]
    damage(engine)
    with pytest.raises(EngineError) as caught:
        load_engine(engine)
    assert message in caught.value.message
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    if case != "no engine":
        assert "aff-deploy build-engine" in caught.value.fix


def test_a_small_engine_is_held_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "small.engine"
    write_test_engine(path, plan=b"vtrt small")
    path.write_bytes(b"vtrt small and more")
    with pytest.raises(EngineError, match="9 bytes after"):
        load_engine(path)
    path.write_bytes(b"vtrt")
    with pytest.raises(EngineError, match="cut short: 4 of 10"):
        load_engine(path)


def test_the_bytes_checked_are_the_bytes_returned(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Swapping:
        """Replaces the file in the moment after it was read."""

        def __init__(self, data: bytes) -> None:
            engine.write_bytes(b"x" * len(PLAN))
            self.digest = real(data)

        def hexdigest(self) -> str:
            return self.digest.hexdigest()

    real = hashlib.sha256
    manifest = read_engine_manifest(engine)
    monkeypatch.setattr("aff_deploy.engine_file.check.read_engine_manifest", lambda _: manifest)
    monkeypatch.setattr("aff_deploy.engine_file.check.check_onnx", lambda *_: None)
    monkeypatch.setattr("aff_deploy.engine_file.check.hashlib.sha256", Swapping)
    assert load_engine(engine).plan == PLAN
    monkeypatch.undo()
    assert engine.read_bytes() != PLAN


MALFORMED: dict[str, tuple[dict[str, Any], str]] = {
    "no such precision": ({"precision": {"asked": "fp17", "proven": None}}, "'fp17' is not a valid Precision"),
    "no proof stated": ({"precision": {"asked": "fp16"}}, "'' is not a valid Precision"),
    "an unreadable capability": ({"compute_capabilities": ["sm_89"]}, "'compute_capabilities' is ['sm_89']"),
    "no capability": ({"compute_capabilities": []}, "'compute_capabilities' is []"),
    "a path for a name": ({"onnx": {"file": "../m.onnx", "sha256": "0" * 64}}, "names '../m.onnx'"),
    "a path among companions": ({"onnx": {"sha256": "0" * 64, "companions": {"/etc/hosts": ""}}}, "names '/etc/hosts'"),
    "no hash": ({"onnx": {"file": "m.onnx", "sha256": "0"}}, "'sha256' is no SHA-256"),
    "an unknown dtype": ({"outputs": [{"name": "y", "shape": [1], "dtype": "float3"}]}, "unknown dtype 'float3'"),
    "a size below one": ({"outputs": [{"name": "y", "shape": [-1], "dtype": "float32"}]}, "dimension -1"),
    "a flag for a size": ({"outputs": [{"name": "y", "shape": [True], "dtype": "float32"}]}, "sizes and names are expected"),
    "dynamic without profile": ({"profiles": []}, "'profiles' is empty"),
    "upside down": ({"profiles": [{"min": {"x": [8, 3]}, "opt": {"x": [4, 3]}, "max": {"x": [8, 3]}}]}, "from 8 over 4 to 8"),
    "another rank": ({"profiles": [{"min": {"x": [1]}, "opt": {"x": [1]}, "max": {"x": [1]}}]}, "does not fit input 'x'"),
    "static bent": ({"profiles": [{"min": {"x": [1, 1]}, "opt": {"x": [1, 3]}, "max": {"x": [8, 3]}}]}, "from 1 over 3 to 3"),
    "input left out": ({"profiles": [{"min": {}, "opt": {}, "max": {}}]}, "profile min 'x' is missing"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_facts_are_neither_written_nor_read(engine: Path, case: str, tmp_path: Path) -> None:
    changes, message = MALFORMED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        write_engine(PLAN, tmp_path / "new.engine", engine_facts(**changes))
    edit(engine, lambda manifest: manifest.update(changes))
    seal(engine)
    with pytest.raises(EngineError, match=re.escape(message)):
        load_engine(engine)


def test_facts_that_no_manifest_may_carry(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="facts carry sha256"):
        write_engine(PLAN, tmp_path / "m.engine", engine_facts(sha256="0" * 64))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_engine(PLAN, tmp_path / "m.engine", engine_facts(weights_bytes=float("inf")))


@pytest.mark.parametrize("field", ["backend", "profiles", "head_sha256", "seal", "weights_bytes", "typed"])
def test_a_missing_field_is_named(engine: Path, field: str) -> None:
    edit(engine, lambda manifest: manifest.pop(field))
    with pytest.raises(EngineError, match=f"'{field}' is missing"):
        read_engine_manifest(engine)


def test_a_given_onnx_file_is_compared(engine: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere.onnx"
    with pytest.raises(ModelError, match="does not exist"):
        load_engine(engine, onnx=other)
    other.write_bytes(b"something else")
    with pytest.raises(EngineError, match=r"is stale.*build-engine .*elsewhere\.onnx"):
        load_engine(engine, onnx=other)
    other.write_bytes(ONNX)
    assert load_engine(engine, onnx=other).plan == PLAN
    other.write_bytes(b"typed")
    assert load_engine(engine, onnx=other).plan == PLAN


def test_weights_beside_the_onnx_file_count(tmp_path: Path) -> None:
    path, weights = tmp_path / "m.engine", tmp_path / "m.onnx.data"
    onnx = {**engine_facts()["onnx"], "companions": {weights.name: hashlib.sha256(b"weights").hexdigest()}}
    write_test_engine(path, onnx=onnx)
    weights.write_bytes(b"weights")
    assert load_engine(path).plan == PLAN
    weights.write_bytes(b"retrained")
    with pytest.raises(EngineError, match=r"another m\.onnx\.data"):
        load_engine(path)


def test_an_engine_of_no_file_is_not_stale(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    write_test_engine(path, onnx={"file": None, "sha256": "0" * 64})
    assert load_engine(path).manifest.onnx is None


@pytest.mark.parametrize(
    ("backend", "version", "compatible", "message"),
    [
        ("tensorrt", "10.13.0.35", False, ""),
        ("tensorrt", "10.13.0.36", False, r"built with tensorrt 10\.13\.0\.35, here is 10\.13\.0\.36"),
        ("tensorrt", "11.4.0.1", True, ""),
        ("tensorrt", "10.9.0.35", True, "here is 10.9"),
        ("tensorrt-rtx", "1.7.1.116", False, "built with tensorrt, which tensorrt-rtx cannot run"),
    ],
)
def test_libraries(tmp_path: Path, backend: str, version: str, compatible: bool, message: str) -> None:
    path = tmp_path / "m.engine"
    facts = {"backend": "tensorrt", "library_version": "10.13.0.35", "options": {"version_compatible": compatible}}
    write_test_engine(path, **facts)
    if not message:
        check_engine(path, backend=backend, library_version=version)
        return
    with pytest.raises(EngineError, match=message):
        check_engine(path, backend=backend, library_version=version)


def test_rtx_engines_run_on_their_own_version_alone(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    write_test_engine(path, options={"version_compatible": True})
    with pytest.raises(EngineError, match=r"here is 1\.8"):
        check_engine(path, backend="tensorrt-rtx", library_version="1.8.0.1")


@pytest.mark.parametrize(
    ("capability", "runs"), [((8, 9), True), ((8, 6), False), ((9, 0), False), ((12, 0), True), ((12, 1), True)]
)
def test_gpus(engine: Path, capability: tuple[int, int], runs: bool) -> None:
    if runs:
        check_engine(engine, compute_capability=capability)
        return
    here = f"{capability[0]}.{capability[1]}"
    with pytest.raises(EngineError, match=rf"this GPU has {here}.*--compute-capability {here}"):
        check_engine(engine, compute_capability=capability)


def test_precision(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    write_test_engine(path)
    with pytest.raises(EngineError, match=r"is fp16, wanted is int8; .* --int8 --calib DATA\.npz"):
        check_engine(path, precision=Precision.INT8)
    write_test_engine(path, precision={"asked": "fp16", "proven": None})
    with pytest.raises(EngineError, match="has no proof of its precision"):
        check_engine(path, precision=Precision.FP16)


def test_the_command_that_builds_it_again(tmp_path: Path) -> None:
    path = tmp_path / "my engine"
    write_test_engine(path)
    (tmp_path / "m.onnx").write_bytes(b"new")
    with pytest.raises(EngineError) as caught:
        load_engine(path)
    assert caught.value.fix == (
        f"build it again: aff-deploy build-engine {tmp_path}/m.onnx -o '{path}' --backend tensorrt-rtx --fp16 "
        "--min-shapes x:1x3 --opt-shapes x:4x3 --max-shapes x:8x3"
    )


def test_describing_an_engine(engine: Path) -> None:
    document = describe_engine(engine)
    assert json.loads(json.dumps(document)) == document
    assert (document["intact"], document["problem"], document["onnx"]) == (True, None, "same")
    assert (document["bytes"], document["sha256"]) == (len(PLAN), hashlib.sha256(PLAN).hexdigest())
    assert document["written_by"] == "TensorRT-RTX"
    assert document["proven"]["precision"] == "fp16"
    assert document["manifest"]["seconds"] == {"build": 1.5}


def test_describing_what_would_be_refused(engine: Path) -> None:
    engine.with_name("m.onnx").write_bytes(b"new")
    document = describe_engine(engine)
    assert (document["intact"], document["onnx"]) == (True, "changed")
    assert "stale" in document["problem"]
    engine.write_bytes(PLAN[:-1] + b"!")
    document = describe_engine(engine)
    assert (document["intact"], document["proven"]) == (False, None)
    assert "altered" in document["problem"]
    assert document["manifest"]["backend"] == "tensorrt-rtx"
    edit(engine, lambda manifest: manifest.update(backend="tensorrt"))
    assert describe_engine(engine)["manifest"] is None


def test_describing_an_engine_of_someone_elses(tmp_path: Path) -> None:
    path = tmp_path / "theirs.engine"
    path.write_bytes(b"ftrt" + bytes(10))
    document = describe_engine(path)
    assert (document["written_by"], document["bytes"], document["intact"]) == ("TensorRT", 14, False)
    assert "has no manifest" in document["problem"]
    path.write_bytes(b"not an engine")
    assert describe_engine(path)["written_by"] is None
    with pytest.raises(EngineError, match="no such file"):
        describe_engine(tmp_path / "absent")
