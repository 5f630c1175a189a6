"""Files appear whole or not at all, and their manifests are true."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path

import pytest

from aff_deploy.artifact import check_writable, read_manifest, sha256, staged_file, staged_folder, versions, write_manifest
from aff_deploy.errors import InputError, OutputError


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_staged_file_moves_its_companions_with_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model.onnx"
    with staged_file(target) as staged:
        staged.write_bytes(b"model")
        write_manifest(staged, {"made": "here"})
        assert not target.exists()
    assert names(tmp_path) == ["new", "new/model.onnx", "new/model.onnx.json"]
    manifest = read_manifest(target)
    assert manifest is not None
    assert (manifest["made"], manifest["sha256"], manifest["bytes"]) == ("here", sha256(target), 5)
    assert manifest["versions"].keys() >= {"python", "onnx"}


def fail(staged: Path, error: type[BaseException]) -> None:
    (staged / "x" if staged.is_dir() else staged).write_bytes(b"new")
    raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "model.onnx").write_bytes(b"old")
    for place in (
        staged_file(tmp_path / "model.onnx"),
        staged_file(tmp_path / "a/b/model.onnx"),
        staged_folder(tmp_path / "c/out", marker="m"),
    ):
        with pytest.raises(error), place as staged:
            fail(staged, error)
    assert names(tmp_path) == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no space is left"), staged_file(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_staged_folder_replaces_only_its_own(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for content in ("first", "second"):
        with staged_folder(target, marker="m.json") as stage:
            (stage / "m.json").write_text(content)
            (stage / content).touch()
    assert names(tmp_path) == ["out", "out/m.json", "out/second"]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/file").touch()
    with pytest.raises(OutputError, match="not made by aff-deploy"), staged_folder(tmp_path / "theirs", marker="m.json"):
        pytest.fail("must not begin")
    with pytest.raises(OutputError, match="it is a file"), staged_folder(tmp_path / "theirs/file", marker="m.json"):
        pytest.fail("must not begin")


def test_the_former_folder_comes_back_if_the_move_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    with staged_folder(target, marker="m.json") as stage:
        (stage / "m.json").write_text("first")
    rename = os.rename

    def failing(source: Path, destination: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError(errno.EACCES, "denied")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OutputError, match="permission denied"), staged_folder(target, marker="m.json") as stage:
        (stage / "m.json").write_text("second")
    assert names(tmp_path) == ["out", "out/m.json"]
    assert (target / "m.json").read_text() == "first"


def test_a_signal_during_the_move_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    target = tmp_path / "out"
    with staged_folder(target, marker="m.json") as stage:
        (stage / "m.json").write_text("first")
    rename = os.rename
    # A shell starts what it puts into the background with SIGINT ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))

    def interrupted(source: Path, destination: Path) -> None:
        rename(source, destination)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), staged_folder(target, marker="m.json") as stage:
        (stage / "m.json").write_text("second")
    assert names(tmp_path) == ["out", "out/m.json"]
    assert (target / "m.json").read_text() == "second"


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b/c.onnx")
    assert names(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a part of the path is a file"):
        check_writable(tmp_path / "file/x.onnx")
    with pytest.raises(OutputError, match="it is a folder"):
        check_writable(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="permission denied"):
        check_writable(tmp_path / "x")


def test_a_stale_or_broken_manifest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"one")
    assert read_manifest(path) is None
    write_manifest(path, {})
    path.write_bytes(b"two")
    with pytest.raises(InputError, match="not the file that its manifest describes"):
        read_manifest(path)
    for text in ("{", "[]", json.dumps("x")):
        (tmp_path / "model.onnx.json").write_text(text)
        with pytest.raises(InputError, match="manifest"):
            read_manifest(path)


def test_versions_name_the_interpreter_and_the_package() -> None:
    assert {"python", "aff-deploy", "onnx", "numpy"} <= versions().keys()
