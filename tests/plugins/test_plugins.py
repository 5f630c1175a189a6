"""The launcher and the plugin: compiled with warnings as errors, their own tests run, without a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.plugins.building import NO_HEADERS, build, configure, cuda_headers, run, tensorrt_root
from tests.plugins.cases import Case, attributes_of, cases, write_case

LAUNCHER_TESTS = ("ptx", "launcher", "fusion", "no_driver")
PLUGIN_TESTS = ("plugin", "plugin_bad_input", "registration_load_library", "registration_dlopen_then_load_library")
SMALL = [case for case in cases() if case.images * case.channels * case.spatial[0] * case.spatial[1] < 50_000]


def ctest(folder: Path, *options: str) -> dict[str, str]:
    """What ctest says of each test; fails with its output if one fails."""
    text = run("ctest", "--output-on-failure", *options, cwd=folder)
    return dict(re.findall(r"Test +#\d+: (\w+) \.*\s*\**(\w+)", text))


@pytest.fixture
def with_plugin(built: Path) -> Path:
    if not tensorrt_root():
        pytest.skip(NO_HEADERS)
    return built


@pytest.mark.parametrize("name", LAUNCHER_TESTS)
def test_the_launcher_passes_its_tests(built: Path, name: str) -> None:
    assert ctest(built, "-R", f"^{name}$") == {name: "Passed"}


def test_the_launchers_declarations_are_those_of_cuda_h(built: Path) -> None:
    if cuda_headers() is None:
        pytest.skip("no cuda.h: install triton or set CUDA_INCLUDE_DIR")
    assert list((built / "tests").glob("**/abi_check.cpp.o"))


def test_without_tensorrts_headers_the_plugin_is_skipped_by_name(tmp_path: Path) -> None:
    said = configure(tmp_path / "build", f"-DTENSORRT_ROOT={tmp_path}")
    assert f"plugin: skipped: no TensorRT headers (NvInfer.h): none in TENSORRT_ROOT={tmp_path}" in said


def test_without_cudas_headers_each_part_is_skipped_by_name(tmp_path: Path) -> None:
    (tmp_path / "NvInfer.h").touch()
    (tmp_path / "empty").mkdir()
    said = configure(tmp_path / "build", f"-DTENSORRT_ROOT={tmp_path}", f"-DCUDA_INCLUDE_DIR={tmp_path / 'empty'}")
    assert "plugin: skipped: no cuda_runtime_api.h (TensorRT's headers include it): set CUDA_INCLUDE_DIR" in said
    assert "comparison with cuda.h: skipped: no cuda.h: set CUDA_INCLUDE_DIR" in said


def test_the_plugin_passes_its_tests(with_plugin: Path) -> None:
    found = ctest(with_plugin, "-R", "plugin|registration")
    assert {name: found.get(name) for name in PLUGIN_TESTS} == dict.fromkeys(PLUGIN_TESTS, "Passed")
    assert found["plugin_on_gpu"] in ("Passed", "Skipped")


def test_without_a_gpu_the_host_program_says_so(with_plugin: Path) -> None:
    text = run("ctest", "-V", "-R", "plugin_on_gpu", cwd=with_plugin)
    assert "skipped: no GPU" in text or "skipped: no case files" in text


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_the_host_program_passes_on_the_stand_in(with_plugin: Path, tmp_path: Path, kernel_cache: Path, case: Case) -> None:
    """Real attributes, whose PTX the stand-in executes, from an engine's point of view."""
    path = tmp_path / "one.case"
    write_case(case, attributes_of(case, kernel_cache), path)
    said = run(
        str(with_plugin / "tests" / "plugin_host"), str(path), env={"LD_LIBRARY_PATH": str(with_plugin / "tests" / "fake")}
    )
    assert "on stand-in" in said
    assert "1 passed, 0 failed" in said


@pytest.mark.slow
@pytest.mark.parametrize("options", [("Release", ""), ("Debug", "thread")], ids=["release", "threads"])
def test_other_builds_pass_too(tmp_path: Path, options: tuple[str, str]) -> None:
    kind, sanitizer = options
    configure(tmp_path, f"-DCMAKE_BUILD_TYPE={kind}", f"-DAFF_DEPLOY_SANITIZE={sanitizer}")
    build(tmp_path)
    assert {found for name, found in ctest(tmp_path).items() if name != "plugin_on_gpu"} == {"Passed"}
