"""Input files of every odd kind: told in one line, without waiting and without being read."""

from __future__ import annotations

import os
import socket
import struct
import zipfile
from pathlib import Path

import pytest

from aff_deploy.artifact import is_input, open_archive, open_input, read_input, read_json
from aff_deploy.errors import DataError


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "nowhere").symlink_to("absent")
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    (tmp_path / "file").write_text("x")
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(2**40)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "it is a folder"),
        ("loop", "its symbolic links go in a circle"),
        ("nowhere", "no such file"),
        ("zero", "it is a device, pipe or socket"),
        ("pipe", "it is a device, pipe or socket"),
        ("socket", "No such device or address"),
        ("absent", "no such file"),
        ("file/x", "a part of the path is a file"),
        ("a" * 300, "the name is too long"),
        ("a\0b", "no file can have that name"),
        ("\ud800", "no file can have that name"),
        ("sparse", "more than the 100 that are read"),
    ],
)
def test_what_is_no_file_to_read(odd: Path, name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        read_input(Path(name), error=DataError, most=100)
    assert "\n" not in str(caught.value)
    assert is_input(Path(name)) is (name == "sparse")


def test_a_file_is_read_as_it_is(odd: Path) -> None:
    assert read_input(Path("file"), most=1) == b"x"
    with open_input(Path("file")) as file:
        assert file.read() == b"x"
    with pytest.raises(DataError, match="more than the 0"):
        read_input(Path("file"), error=DataError, most=0)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "{", "[]", '{"a": Infinity}', '{"a": ' + "9" * 5000 + "}", ""]
)
def test_json_that_is_no_object_of_numbers(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=r"x\.json is not "):
        read_json(tmp_path / "x.json", what="manifest", error=DataError, fix="make it again")


def test_an_archive_of_millions_of_names_is_refused_by_its_index(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"1234")
    with open_archive(path, most=2**40, fix="") as archive:
        assert archive.read("x") == b"1234"
    # An end record that names an index of 64 MiB, in a file that is large enough.
    with open(path, "wb") as file:
        file.truncate(2**26)
        file.seek(2**26)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65000, 65000, 2**26, 0, 0))
    with pytest.raises(zipfile.BadZipFile, match="index"), open_archive(path, most=2**40, fix=""):
        pytest.fail("must not open")
