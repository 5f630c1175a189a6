"""Outputs appear whole or not at all, and nothing that is not ours is replaced or removed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aff_deploy.artifact import (
    check_writable,
    read_manifest,
    sha256,
    staged_file,
    staged_folder,
    write_folder_manifest,
    write_manifest,
)
from aff_deploy.errors import OutputError, UsageError


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def write_file(target: Path, *sidecars: str) -> None:
    with staged_file(target) as staged:
        staged.write_text("new")
        for suffix in sidecars:
            staged.with_name(target.name + suffix).write_text("new")


def write_folder(target: Path, *files: str) -> None:
    with staged_folder(target) as stage:
        for name in files:
            (stage / name).write_text(name)
        write_folder_manifest(stage, {"name": "n"})


def test_staged_file_moves_its_companions_with_it(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model.onnx"
    for content in (b"first", b"model"):
        with staged_file(target) as staged:
            staged.write_bytes(content)
            staged.with_name("model.onnx.data").write_bytes(content)
            write_manifest(staged, {"made": "here"}, companions=[staged.with_name("model.onnx.data")])
    assert names(tmp_path) == ["new", "new/model.onnx", "new/model.onnx.data", "new/model.onnx.json"]
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
        staged_folder(tmp_path / "c/out"),
    ):
        with pytest.raises(error), place as staged:
            fail(staged, error)
    assert names(tmp_path) == ["model.onnx"]
    assert (tmp_path / "model.onnx").read_bytes() == b"old"


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no space is left"), staged_file(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


@pytest.mark.parametrize("suffix", [".json", ".data"])
def test_a_file_of_someone_elses_beside_the_output_is_kept(tmp_path: Path, suffix: str) -> None:
    target = tmp_path / "m"
    theirs = tmp_path / f"m{suffix}"
    theirs.write_text('{"my": 1}')
    with pytest.raises(UsageError, match=f"m\\{suffix} is in the way"):
        check_writable(target, suffix)
    with pytest.raises(UsageError, match=f"m\\{suffix} is in the way"):
        write_file(target, suffix)
    assert names(tmp_path) == [theirs.name]
    assert theirs.read_text() == '{"my": 1}'


def test_a_former_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    write_folder(target, "first")
    write_folder(target, "second")
    assert names(tmp_path) == ["out", "out/manifest.json", "out/second"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "notes.txt").write_text("keep"), "notes.txt would be lost"),
        (lambda out: (out / "__pycache__").mkdir(), "__pycache__ would be lost"),
        (lambda out: ((out / "first").unlink(), (out / "first").symlink_to("../victim")), "first would be lost"),
        (lambda out: (out / "manifest.json").write_text("{}"), "was not made by aff-deploy"),
        (lambda out: (out / "manifest.json").write_text("[" * 100_000), "was not made by aff-deploy"),
        (lambda out: (out / "manifest.json").unlink(), "was not made by aff-deploy"),
    ],
)
def test_a_folder_with_anything_of_someone_elses_is_refused(tmp_path: Path, damage: object, message: str) -> None:
    (tmp_path / "victim").write_text("precious")
    target = tmp_path / "out"
    write_folder(target, "first")
    damage(target)  # type: ignore[operator]
    before = names(tmp_path)
    with pytest.raises(UsageError, match=message):
        write_folder(target, "second")
    assert names(tmp_path) == before


def test_a_note_written_during_the_work_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "out"
    write_folder(target, "first")

    def write_both() -> None:
        with staged_folder(target) as stage:
            write_folder_manifest(stage, {"name": "n"})
            (target / "notes.txt").write_text("keep")

    with pytest.raises(UsageError, match=r"notes\.txt would be lost"):
        write_both()
    assert names(tmp_path) == ["out", "out/first", "out/manifest.json", "out/notes.txt"]


def test_a_manifest_cannot_list_what_lies_elsewhere(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "first")
    manifest = tmp_path / "out/manifest.json"
    manifest.write_text(manifest.read_text().replace('"first":', '"../victim":'))
    (tmp_path / "victim").write_text("precious")
    with pytest.raises(UsageError, match="was not made by aff-deploy"):
        write_folder(tmp_path / "out", "second")


def test_links_and_devices_are_no_outputs(tmp_path: Path) -> None:
    write_folder(tmp_path / "out", "first")
    (tmp_path / "link").symlink_to("out")
    (tmp_path / "file").symlink_to("out/first")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "file", "loop"):
        with pytest.raises(UsageError, match=f"{name}: it is a symbolic link"):
            check_writable(tmp_path / name)
    with pytest.raises(UsageError, match="it is a symbolic link"), staged_folder(tmp_path / "link"):
        pytest.fail("must not begin")
    with pytest.raises(OutputError, match="a device or a pipe"):
        check_writable(tmp_path / "pipe")
    with pytest.raises(OutputError, match="it is a file"), staged_folder(tmp_path / "out/first"):
        pytest.fail("must not begin")


@pytest.mark.parametrize("mask", [0o077, 0o022, 0o002])
def test_the_umask_decides_who_may_look(tmp_path: Path, mask: int) -> None:
    former = os.umask(mask)
    try:
        write_folder(tmp_path / "new/out", "first")
        with staged_file(tmp_path / "file") as staged:
            staged.write_text("x")
    finally:
        os.umask(former)
    for path in (tmp_path / "new", tmp_path / "new/out"):
        assert path.stat().st_mode & 0o777 == 0o777 & ~mask
    for path in (tmp_path / "file", tmp_path / "new/out/first"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    with staged_file(tmp_path / ("a" * 255)) as staged:
        staged.write_text("x")
    with pytest.raises(OutputError, match="the name is too long"):
        check_writable(tmp_path / ("a" * 256))
    with pytest.raises(OutputError, match="the name is too long"):
        check_writable(tmp_path / ("a" * 255), ".json")


KILLED = """
import os, signal, sys
from pathlib import Path
from aff_deploy.artifact import staged_folder, write_folder_manifest
import aff_deploy.artifact.staging as staging
target, moment = Path(sys.argv[1]), sys.argv[2]
if moment == "swap":
    rename = os.rename
    def killed(source, goal):
        if str(source).endswith(".partial"):
            os.kill(os.getpid(), signal.SIGKILL)
        rename(source, goal)
with staged_folder(target) as stage:
    (stage / "second").touch()
    write_folder_manifest(stage, {"name": "n"})
    if moment == "work":
        os.kill(os.getpid(), signal.SIGKILL)
    os.rename = killed
"""


@pytest.mark.parametrize("moment", ["work", "swap"])
def test_what_a_killed_run_left_goes_with_the_next(tmp_path: Path, moment: str) -> None:
    target = tmp_path / "out"
    write_folder(target, "first")
    ran = subprocess.run([sys.executable, "-c", KILLED, str(target), moment])
    assert ran.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] != ["out"]
    # The one before comes back, if only its name was lost.
    with pytest.raises(ValueError, match="stop"), staged_folder(target):
        raise ValueError("stop")
    assert names(tmp_path) == ["out", "out/first", "out/manifest.json"]


def test_what_a_living_run_is_making_stays(tmp_path: Path) -> None:
    with staged_file(tmp_path / "x") as mine:
        mine.write_text("mine")
        with staged_file(tmp_path / "x") as other:
            other.write_text("other")
        assert mine.read_text() == "mine"
    assert (tmp_path / "x").read_text() == "mine"
    assert names(tmp_path) == ["x"]


def test_folders_of_similar_names_are_nobodys_leftovers(tmp_path: Path) -> None:
    for name in (".x.partial", ".aff-deploy-x.partial", ".x.1234.old"):
        (tmp_path / name).mkdir()
    with staged_file(tmp_path / "x") as staged:
        staged.write_text("x")
    assert names(tmp_path) == [".aff-deploy-x.partial", ".x.1234.old", ".x.partial", "x"]


def test_the_former_folder_comes_back_if_the_move_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out"
    write_folder(target, "first")
    rename = os.rename

    def failing(source: Path, destination: Path) -> None:
        if str(source).endswith(".partial"):
            raise OSError(errno.EACCES, "denied")
        rename(source, destination)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OutputError, match="permission denied"):
        write_folder(target, "second")
    assert names(tmp_path) == ["out", "out/first", "out/manifest.json"]


def test_a_signal_during_the_move_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    target = tmp_path / "out"
    write_folder(target, "first")
    rename = os.rename
    # A shell starts what it puts into the background with SIGINT ignored.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, former))

    def interrupted(source: Path, destination: Path) -> None:
        rename(source, destination)
        if str(source) == str(target):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_folder(target, "second")
    assert names(tmp_path) == ["out", "out/manifest.json", "out/second"]


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b/c.onnx", ".json")
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


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    def lose_it() -> None:
        with staged_file(tmp_path / "x") as staged:
            shutil.rmtree(staged.parent)
            staged.write_text("x")

    with pytest.raises(OutputError, match="cannot write"):
        lose_it()
