"""The C++ tree, built once for all tests of this folder."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from tests.plugins.building import build, configure


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The build folder: without optimisation, under the address and undefined-behaviour sanitizers.

    Tests that run side by side share it: the first builds, the others wait.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "plugins"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            debug = ("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O0")
            configure(folder, *debug, "-DAFF_DEPLOY_SANITIZE=address,undefined")
            build(folder)
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of compiled kernels for these tests; they are skipped without Triton."""
    pytest.importorskip("triton", reason="no triton to compile kernels with")
    return tmp_path_factory.mktemp("kernels")
