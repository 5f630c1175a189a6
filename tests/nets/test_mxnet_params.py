"""The reader of MXNet's .params files: every version and type of array, and no other error than its own."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from aff_deploy.errors import WeightsError
from aff_deploy.nets import mxnet_params
from aff_deploy.nets.mxnet_params import read_params
from tests.nets.params_files import TYPES, VERSIONS, array, header, listing

DATA = Path(__file__).parent.parent / "data" / "openaff"


def small() -> bytes:
    generator = np.random.default_rng(0)
    values = [generator.normal(size=shape).astype(np.float32) for shape in ((4, 3, 1, 1), (4,), (2, 5))]
    return listing([array(value, version) for version, value in enumerate(values, start=1)], [b"a.weight", b"b.gamma", b"c"])


def refusal(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(WeightsError) as caught:
        read_params(path)
    assert "\n" not in str(caught.value)
    assert caught.value.fix
    assert path.name in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", TYPES)
def test_versions_and_types(tmp_path: Path, version: int, dtype: str) -> None:
    values = [np.arange(6).reshape(2, 3).astype(dtype), np.array([7]).astype(dtype)]
    (tmp_path / "w.params").write_bytes(listing([array(value, version) for value in values], [b"one", "zwölf".encode()]))
    found = read_params(tmp_path / "w.params")
    assert list(found) == ["one", "zwölf"]
    for tensor, value in zip(found.values(), values, strict=True):
        assert tensor.dtype == getattr(torch, dtype)
        assert np.array_equal(tensor.numpy(), value)
        assert tensor.numpy().flags.writeable


def test_a_scalar_of_version_3(tmp_path: Path) -> None:
    (tmp_path / "w.params").write_bytes(listing([array(np.array(3, np.float32), 3)], [b"x"]))
    assert read_params(tmp_path / "w.params")["x"].shape == ()


@pytest.mark.parametrize("path", sorted(DATA.glob("*.params")), ids=lambda path: path.stem)
def test_files_of_the_authors_code(path: Path) -> None:
    found = read_params(path)
    assert len(found) > 100
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert all(torch.isfinite(value).all() for value in found.values())


HUGE = 2**62


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "needs 8 bytes and 0 are left"),
        (b"not a list of arrays", "not an MXNet .params file"),
        (struct.pack("<QQQ", 0x112, 1, 0), "header"),
        (struct.pack("<QQQ", 0x112, 0, HUGE), "claims"),
        (struct.pack("<QQQQ", 0x112, 0, 0, 0), "no arrays"),
        (struct.pack("<QQQQ", 0x112, 0, 0, HUGE), "0 arrays and"),
        (listing([array(np.ones(2, np.float32))], []), "without names"),
        (listing([array(np.ones(2, np.float32))] * 2, [b"a"]), "2 arrays and 1 names"),
        (listing([array(np.ones(2, np.float32))] * 2, [b"a", b"a"]), "two arrays 'a'"),
        (listing([array(np.ones(2, np.float32))], [b"\xff\xfe"]), "is not text"),
        (listing([array(np.ones(2, np.float32))], [b"a\nb"]), "name 1 of 1"),
        (listing([array(np.ones(2, np.float32))], [b""]), "has 0 bytes"),
        (listing([array(np.ones(2, np.float32))], [b"x" * 2000]), "has 2000 bytes"),
        (listing([array(np.ones(2, np.float32))], [b"a"]) + b"!", "1 bytes follow its end"),
        (listing([header(2, (HUGE,))], [b"a"]), "array 1 of 1 needs"),
        (listing([header(2, (2**31, 2**31, 2**31))], [b"a"]), "array 1 of 1 needs"),
        (listing([header(2, (-1, -4))], [b"a"]), "has shape (-1, -4)"),
        (listing([header(2, (0, 4))], [b"a"]), "has shape (0, 4)"),
        (listing([header(2, (1,) * 9)], [b"a"]), "has rank 9"),
        (listing([header(2, ())], [b"a"]), "never initialised"),
        (listing([header(2, (2,), element=7) + bytes(2)], [b"a"]), "is bool"),
        (listing([header(2, (2,), element=99) + bytes(8)], [b"a"]), "element type 99"),
        (listing([header(2, (2,), storage=1)], [b"a"]), "row-sparse"),
        (listing([header(2, (2,), storage=9)], [b"a"]), "storage type 9"),
        (listing([struct.pack("<IIII", 2, 3, 4, 0)], [b"a"]), "known version"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in refusal(tmp_path / "w.params", content)


def test_every_truncation(tmp_path: Path) -> None:
    whole = small()
    for length in range(len(whole)):
        refusal(tmp_path / "short.params", whole[:length])


def test_nothing_is_allocated_for_a_claim(tmp_path: Path) -> None:
    path = tmp_path / "w.params"
    path.write_bytes(listing([header(2, (2**28,))], [b"a"]))
    tracemalloc.start()
    with pytest.raises(WeightsError):
        read_params(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mxnet_params, "MAX_FILE", 100)
    assert "more than the 100" in refusal(tmp_path / "w.params", small())


def mutated(content: bytes, generator: random.Random) -> bytes:
    """One to four random changes: a bit, a number that is extreme, a piece cut out, doubled or made up."""
    data = bytearray(content)
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(data) + 1)
        kind = generator.randrange(5)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << generator.randrange(8)
        elif kind == 1:
            number = generator.choice((0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 2**40, 0x112, 9))
            size = generator.choice((4, 8))
            data[place : place + size] = (number % (1 << 8 * size)).to_bytes(size, "little")
        elif kind == 2:
            del data[place : place + generator.randint(1, 40)]
        elif kind == 3:
            data[place:place] = data[place : place + generator.randint(1, 40)]
        else:
            data[place:place] = generator.randbytes(generator.randint(1, 16))
    return bytes(data)


def test_two_thousand_mutations_give_weights_or_a_refusal(tmp_path: Path) -> None:
    path, whole, generator = tmp_path / "w.params", small(), random.Random(20240229)
    read = 0
    for _ in range(2000):
        path.write_bytes(mutated(whole, generator))
        with contextlib.suppress(WeightsError):
            assert read_params(path)
            read += 1
    assert 20 < read < 1000
