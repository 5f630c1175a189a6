"""What each backend is refused before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from aff_deploy.engine.options import BuildOptions, check_options
from aff_deploy.errors import UsageError
from aff_deploy.runtimes.backends import TENSORRT, TENSORRT_RTX
from aff_deploy.spec import Precision


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (BuildOptions(timing_cache=Path("times")), "--timing-cache"),
        (BuildOptions(hardware_compatibility="ampere+"), "--hardware-compatibility"),
        (BuildOptions(version_compatible=True), "--version-compatible"),
        (BuildOptions(strip_weights=True), "--strip-weights"),
        (BuildOptions(plugin=Path(__file__)), "--plugin"),
    ],
)
def test_rtx_refuses_what_only_tensorrt_has(options: BuildOptions, named: str) -> None:
    with pytest.raises(UsageError, match=f"{named} is not for TensorRT-RTX"):
        check_options(options, TENSORRT_RTX)
    check_options(options, TENSORRT)


def test_tensorrt_builds_for_the_gpu_that_is_there() -> None:
    with pytest.raises(UsageError, match="--compute-capability is not for TensorRT"):
        check_options(BuildOptions(compute_capabilities=("8.9",)), TENSORRT)


def test_an_architecture_that_rtx_does_not_know_is_refused() -> None:
    check_options(BuildOptions(compute_capabilities=("8.6", "8.9")), TENSORRT_RTX)
    with pytest.raises(UsageError, match=r"compute capability 9\.0; it knows 7\.5, 8\.0"):
        check_options(BuildOptions(compute_capabilities=("8.6", "9.0")), TENSORRT_RTX)


@pytest.mark.parametrize("options", [BuildOptions(optimization_level=6), BuildOptions(workspace=0)])
def test_numbers_out_of_range_are_refused(options: BuildOptions) -> None:
    with pytest.raises(UsageError):
        check_options(options, TENSORRT_RTX)


def test_a_plugin_library_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no plugin library"):
        check_options(BuildOptions(plugin=tmp_path / "lib.so"), TENSORRT)


def test_old_gpus_have_no_fp8() -> None:
    options = BuildOptions(compute_capabilities=("8.6",))
    check_options(options, TENSORRT_RTX, Precision.INT8)
    with pytest.raises(UsageError, match=r"capability 8\.6 have no fp8"):
        check_options(options, TENSORRT_RTX, Precision.FP8)


def test_a_manifest_names_what_was_chosen() -> None:
    assert BuildOptions().to_dict() == {}
    chosen = BuildOptions(workspace=64, compute_capabilities=("8.9",), tf32=False, timing_cache=Path("some/times"))
    assert chosen.to_dict() == {"workspace": 64, "compute_capabilities": ["8.9"], "tf32": False, "timing_cache": "times"}
