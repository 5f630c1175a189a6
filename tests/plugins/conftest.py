"""The C++ tree, built once for all tests of this folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.plugins.building import build, configure
from tests.plugins.stand_in import build_stand_in, library_in


def _once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, made by whichever of the tests that run side by side comes first; the others wait."""
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            make(folder)
            (folder / "done").touch()
    return folder


def _shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _build_sanitized(folder: Path) -> None:
    debug = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0")
    configure(folder, *debug, "-DAFF_DEPLOY_SANITIZE=address,undefined")
    build(folder)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder: without optimisation, under the address and undefined-behaviour sanitizers."""
    return _once(_shared(tmp_path_factory) / "plugins", _build_sanitized)


@pytest.fixture(scope="session")
def stand_in_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in for CUDA's driver, optimised."""
    folder = _once(_shared(tmp_path_factory) / "stand_in", build_stand_in)
    return library_in(folder)


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of compiled kernels for these tests; they are skipped without Triton."""
    pytest.importorskip("triton", reason="no triton to compile kernels with")
    folder = _shared(tmp_path_factory) / "kernels"
    folder.mkdir(exist_ok=True)
    return folder
