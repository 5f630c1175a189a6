"""Whatever a command reads, none of its outputs replaces it, whichever is known first."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from aff_deploy.artifact import check_input, claim_file, claim_folder, kept_apart, note_read, open_input, read_input
from aff_deploy.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file, other names of it, and a folder; where relative paths begin."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "in.onnx").write_bytes(b"model")
    (tmp_path / "sub/in.onnx").write_bytes(b"another")
    (tmp_path / "link.onnx").symlink_to("in.onnx")
    os.link("in.onnx", "hard.onnx")
    return tmp_path


def read(path: str) -> None:
    read_input(Path(path), most=100)


def check(path: str) -> None:
    check_input(Path(path))


@pytest.mark.parametrize("reading", [read, check])
@pytest.mark.parametrize("source", ["in.onnx", "./sub/../in.onnx", "link.onnx", "hard.onnx"])
def test_an_input_is_no_output_before_or_after(folder: Path, source: str, reading: Callable[[str], None]) -> None:
    with kept_apart():
        reading(source)
        with pytest.raises(UsageError, match=r"in\.onnx"):
            claim_file(Path("in.onnx"))
    with kept_apart():
        claim_file(Path("in.onnx"))
        with pytest.raises(UsageError, match=r"in\.onnx"):
            reading(source)


def test_sidecars_are_outputs(folder: Path) -> None:
    with kept_apart():
        read("link.onnx")
        with pytest.raises(UsageError, match=r"the output in\.onnx would replace link\.onnx"):
            claim_file(Path("in"), ".json", ".onnx")


@pytest.mark.parametrize("source", ["sub/in.onnx", "sub"])
def test_a_folder_is_an_output_with_all_in_it(folder: Path, source: str) -> None:
    with kept_apart():
        note_read(Path(source))
        with pytest.raises(UsageError, match="sub"):
            claim_folder(Path("sub"))
    with kept_apart():
        claim_folder(Path("sub"))
        with pytest.raises(UsageError, match="sub"):
            note_read(Path(source))


def test_an_updated_file_is_read_and_written_but_is_no_other_input(folder: Path) -> None:
    with kept_apart():
        claim_file(Path("in.onnx"), updating=True)
        read("in.onnx")
        with pytest.raises(UsageError):
            claim_file(Path("hard.onnx"))
    with kept_apart():
        read("in.onnx")
        with pytest.raises(UsageError):
            claim_file(Path("in.onnx"), updating=True)


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_an_output_has_a_name(path: str) -> None:
    with pytest.raises(UsageError, match="names no file"):
        claim_file(Path(path), ".json")


def test_others_are_left_alone(folder: Path) -> None:
    with kept_apart():
        read("in.onnx")
        with kept_apart():  # the same command
            claim_file(Path("sub/in.onnx"))
            claim_file(Path("in.onnx2"))
            claim_folder(Path("subs"))
            with pytest.raises(UsageError):
                claim_file(Path("in.onnx"))
        open_input(Path("sub/in.onnx"), noted=False).close()
    # Another command may read what this one wrote, and a program is no command.
    claim_file(Path("in.onnx"))
    read("in.onnx")
    with kept_apart():
        read("sub/in.onnx")
