"""What reaches a terminal: no control character of a stranger's, no endless line; and a stream that fails is one line."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from aff_deploy.cli.console import table
from aff_deploy.cli.streams import MAX_LINE, SafeStream, printable
from aff_deploy.errors import OutputError
from tests.cli.process import run_all


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \tand\n naïve 漢字 🎉", "plain \tand\n naïve 漢字 🎉"),
        ("\x1b[31m\x07\r\x00\x7f", "\\x1b[31m\\x07\\x0d\\x00\\x7f"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),
        ("\u202egnp\u2066\u200f\ufeff", "\\u202egnp\\u2066\\u200f\\ufeff"),
        ("\u2028\u2029\x0b\x0c", "\\u2028\\u2029\\x0b\\x0c"),
        ("\udc80\ud800", "\\udc80\\ud800"),
    ],
)
def test_control_characters_become_text(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_a_line_has_a_limit_and_keeps_its_end() -> None:
    text = printable("a" * 10**6 + "; do this\n" + "b" * MAX_LINE)
    first, second = text.split("\n")
    assert len(first) == MAX_LINE
    assert first.endswith("; do this")
    assert second == "b" * MAX_LINE
    assert len(printable("\x1b" * MAX_LINE)) == MAX_LINE


def test_a_name_stays_in_its_row_of_a_table() -> None:
    text = table([("a\nb\tc\x1b", 1), ("d" * 1000, 2)], ("name", "number"))
    assert len(text.splitlines()) == 3
    assert "\\n" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) < 250


def test_what_the_encoding_lacks_becomes_an_escape() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print("é 漢", file=SafeStream(stream, "stdout", required=True))
    stream.flush()
    assert raw.getvalue() == b"\\xe9 \\u6f22\n"


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_stream_that_fails_is_told_if_it_matters() -> None:
    stdout = SafeStream(Full(), "stdout", required=True)
    stdout.write("")
    for _ in range(2):  # whoever wrote first may have caught it
        with pytest.raises(OutputError, match="cannot write to stdout: no space is left"):
            stdout.write("x")
    with pytest.raises(OutputError, match="cannot write to stdout: it is closed"):
        SafeStream(None, "stdout", required=True).write("x")
    for stream in (Full(), None):
        SafeStream(stream, "stderr", required=False).write("x")


def test_names_in_files_and_arguments(tmp_path: Path) -> None:
    evil = "x\x1b[31m\x1b]0;title\x07\u202e"
    value = helper.make_tensor_value_info(evil, TensorProto.FLOAT, [f"n{evil}", 4])
    output = helper.make_tensor_value_info("y" * 10_000, TensorProto.FLOAT, None)
    graph = helper.make_graph([helper.make_node("Relu", [evil], [output.name], name=evil)], "g", [value], [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    lines = [
        ["inspect", "m.onnx"],
        ["inspect", "m.onnx", "--json"],
        ["inspect", evil],
        [evil],
        ["optimize", "m.onnx", "-o", evil],
    ]
    results = run_all(tmp_path, lines)
    assert [ran.returncode for ran in results] == [0, 0, 3, 2, 0]
    for ran in results:
        assert not set("\x1b\x07\u202e") & set(ran.stdout + ran.stderr)
    assert "unknown" in results[0].stdout
    assert max(map(len, results[0].stdout.splitlines())) < 300


@pytest.mark.skipif(sys.platform != "linux", reason="has /dev/full")
@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
def test_stdout_without_room(redirection: str) -> None:
    command = f"{sys.executable} -m aff_deploy --version {redirection}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert ran.returncode == 3
    assert ran.stderr.startswith("error: cannot write to stdout: ")
    assert len(ran.stderr.splitlines()) == 1
