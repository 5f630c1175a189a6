"""Which library is used, and what is said where it is missing, broken or too old."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aff_deploy.errors import MissingDependency, UsageError
from aff_deploy.runtimes import backends
from aff_deploy.runtimes.backends import (
    TENSORRT,
    TENSORRT_RTX,
    Backend,
    capability_member,
    find_backend,
    is_installed,
    load,
    parse_capability,
    version,
)


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Backend, Backend]:
    """Both backends, with modules of names that nobody has installed."""
    fakes = replace(TENSORRT, module="fake_tensorrt_a"), replace(TENSORRT_RTX, module="fake_tensorrt_b")
    monkeypatch.setattr(backends, "BACKENDS", fakes)
    monkeypatch.syspath_prepend(tmp_path)
    for backend in fakes:
        monkeypatch.delitem(sys.modules, backend.module, raising=False)
    return fakes


def install(folder: Path, backend: Backend, source: str) -> None:
    package = folder / backend.module
    package.mkdir()
    (package / "__init__.py").write_text(source)


def test_the_first_that_is_installed_is_taken_and_not_imported(tmp_path: Path, pair: tuple[Backend, Backend]) -> None:
    first, second = pair
    install(tmp_path, second, "raise SystemError('imported')")
    assert find_backend() == find_backend("tensorrt-rtx") == second
    with pytest.raises(MissingDependency, match=r"TensorRT is not installed; pip install 'aff-deploy\[gpu\]'"):
        find_backend("tensorrt")
    install(tmp_path, first, "raise SystemError('imported')")
    assert find_backend() == first
    assert find_backend("tensorrt-rtx") == second


def test_none_is_installed(pair: tuple[Backend, Backend]) -> None:
    with pytest.raises(MissingDependency, match="neither TensorRT nor TensorRT-RTX is installed") as caught:
        find_backend()
    assert caught.value.fix == "pip install 'aff-deploy[rtx]' or pip install 'aff-deploy[gpu]'"
    with pytest.raises(MissingDependency, match=r"pip install 'aff-deploy\[rtx\]'"):
        load(pair[1])


def test_type_stubs_are_no_library(tmp_path: Path, pair: tuple[Backend, Backend]) -> None:
    stubs = tmp_path / pair[0].module
    stubs.mkdir()
    (stubs / "__init__.pyi").write_text("__version__: str")
    assert not is_installed(pair[0])


def test_a_library_that_does_not_load(tmp_path: Path, pair: tuple[Backend, Backend]) -> None:
    install(tmp_path, pair[0], "raise OSError('libnvinfer.so.10: cannot open\\nshared object file')")
    with pytest.raises(MissingDependency) as caught:
        load(pair[0])
    assert caught.value.message == (
        "TensorRT is installed but does not load (libnvinfer.so.10: cannot open shared object file)"
    )
    assert caught.value.fix == "pip install --force-reinstall 'tensorrt>=10'"
    assert caught.value.exit_code == 4


def test_versions(tmp_path: Path, pair: tuple[Backend, Backend]) -> None:
    install(tmp_path, pair[0], "__version__ = '8.6.1'")
    with pytest.raises(MissingDependency, match=r"TensorRT 8\.6\.1 is too old"):
        load(pair[0])
    install(tmp_path, pair[1], "__version__ = '1.7.1.116'")
    assert load(pair[1]).__name__ == pair[1].module
    assert version(pair[1]) == "1.7.1.116"


def test_unknown_backend() -> None:
    with pytest.raises(UsageError, match="no backend 'trt'; use tensorrt or tensorrt-rtx"):
        find_backend("trt")


def test_compute_capabilities() -> None:
    assert parse_capability(" 12.1 ") == (12, 1)
    for text in ("89", "8", "sm_89", "8.9+", ""):
        with pytest.raises(UsageError, match="write it as"):
            parse_capability(text)
    assert [capability_member(c) for c in TENSORRT_RTX.compute_capabilities] == [
        "SM75",
        "SM80",
        "SM86",
        "SM89",
        "SM120",
        "SM121",
    ]


def test_the_table_fits_tensorrt_rtx() -> None:
    pytest.importorskip("tensorrt_rtx")
    trt = load(find_backend("tensorrt-rtx"))
    known = set(trt.ComputeCapability.__members__) - {"NONE", "CURRENT"}
    assert {capability_member(c) for c in TENSORRT_RTX.compute_capabilities} == known
    assert not any("plugin" in name for name in dir(trt.INetworkDefinition))
    assert {"create_runtime_config"} <= set(dir(trt.ICudaEngine))
    assert {"cuda_graph_strategy", "create_runtime_cache", "set_runtime_cache"} <= set(dir(trt.IRuntimeConfig))
    assert {"serialize", "deserialize"} <= set(dir(trt.IRuntimeCache))
