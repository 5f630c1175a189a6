"""Running engines: everything but CUDA, with a fake library on the host's memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aff_deploy.artifact import sha256
from aff_deploy.errors import DataError, EngineError, MissingDependency
from aff_deploy.runtimes import Runner
from aff_deploy.runtimes import tensorrt as module
from aff_deploy.runtimes.cuda import Cuda
from aff_deploy.runtimes.tensorrt import GRAPH_BYTES, GRAPHS, TensorRTRunner
from aff_deploy.spec import Precision, TensorSpec
from tests.engines import PLAN, write_test_engine
from tests.fake_tensorrt import Host, Library

X = np.arange(6, dtype=np.float32).reshape(2, 3)

Start = Callable[..., TensorRTRunner]


def batches(rows: int, width: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(rows).normal(size=(rows, width)).astype(np.float32)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """A runner of an engine of a fake library, whose manifest agrees with it unless told otherwise."""

    def begin(
        library: Library | None = None, host: dict[str, Any] | None = None, facts: dict[str, Any] | None = None, **options: Any
    ) -> TensorRTRunner:
        library = library or Library()
        low_high = [(low[0], high[0]) for low, _, high in library.profiles]
        rows: Any = "n" if any(low != high for low, high in low_high) else low_high[0][0]
        dtype = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}.get(library.dtype, "float32")
        profiles = [{"min": {"x": low}, "opt": {"x": usual}, "max": {"x": high}} for low, usual, high in library.profiles]
        written = {
            "backend": "tensorrt",
            "library_version": library.version,
            "compute_capabilities": ["8.9"],
            "inputs": [{"name": "x", "shape": [rows, library.width], "dtype": dtype}],
            "outputs": [{"name": "y", "shape": [rows, library.width], "dtype": dtype}],
            "profiles": profiles,
        }
        write_test_engine(tmp_path / "m.engine", **{**written, **(facts or {})})
        monkeypatch.setattr(module, "load", lambda backend: library.module())
        monkeypatch.setattr(module, "Cuda", partial(Host, **(host or {})))
        return TensorRTRunner(tmp_path / "m.engine", **options)

    return begin


def contexts(library: Library) -> list[Any]:
    return [made for made in (context() for context in library.contexts) if made is not None]


def test_numpy_in_numpy_out(start: Start) -> None:
    runner: Runner
    with start() as runner:
        assert runner.name == "TensorRT"
        assert runner.inputs == (TensorSpec("x", ("n", 3), "float32", (4, 3)),)
        assert runner.outputs == ("y",)
        for rows in (2, 8, 1):
            x = batches(rows)
            got = runner.infer({"x": x})
            assert list(got) == ["y"]
            np.testing.assert_array_equal(got["y"], x * 2)


def test_what_numpy_may_not_share_is_copied(start: Start) -> None:
    fixed = X.copy()
    fixed.flags.writeable = False
    with start() as runner:
        np.testing.assert_array_equal(runner.infer({"x": fixed})["y"], X * 2)
        turned = np.asfortranarray(X)
        np.testing.assert_array_equal(runner.infer({"x": turned})["y"], X * 2)


def test_bfloat16_travels_as_float32(start: Start) -> None:
    x = np.array([[1.00390625, -3.1415927, 65504.0]], np.float32)
    with start(Library(dtype="BF16")) as runner:
        got = runner.infer({"x": x})["y"]
        given = torch.from_numpy(x).bfloat16()
        assert runner.run({"x": given})["y"].dtype == torch.bfloat16
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, (given * 2).float().numpy())


class Foreign:
    """Another framework's tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


def test_tensors_are_bound_where_they_lie(start: Start) -> None:
    library = Library()
    with start(library) as runner:
        tensor = torch.from_numpy(batches(4))
        got = runner.run({"x": tensor})["y"]
        assert torch.equal(got, tensor * 2)
        (context,) = contexts(library)
        assert context.addresses == {"x": tensor.data_ptr(), "y": got.data_ptr()}
        runner.run({"x": Foreign(tensor)})
        assert context.addresses["x"] == tensor.data_ptr()
        strided = torch.from_numpy(batches(3)).repeat(2, 1)[::2]
        assert torch.equal(runner.run({"x": strided})["y"], strided * 2)
        assert context.addresses["x"] != strided.data_ptr()


def test_tensors_that_require_gradients(start: Start) -> None:
    with start() as runner:
        got = runner.run({"x": torch.ones(2, 3, requires_grad=True)})["y"]
    assert not got.requires_grad


def test_memory_is_handed_between_streams(start: Start) -> None:
    with start() as runner:
        tensor = torch.ones(2, 3)
        got = runner.run({"x": tensor})
        ((inputs, outputs),) = runner._device.handed  # type: ignore[attr-defined]
    assert {t.data_ptr() for t in inputs} == {tensor.data_ptr()}
    assert outputs[0] is got["y"]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "no data for input 'x'"),
        ({"x": X, "z": X}, "data for 'z'"),
        ({"x": X[0]}, "rank 1"),
        ({"x": X.astype(np.float64)}, "dtype float64"),
        ({"x": X[:, :2]}, "2 on axis 1"),
        ({"x": batches(9)}, "no profile for x 9x3; it was built for x 1x3 to 8x3"),
    ],
)
def test_feeds_that_do_not_fit(start: Start, feeds: dict[str, Any], message: str) -> None:
    with start() as runner:
        with pytest.raises(DataError, match=message):
            runner.infer(feeds)
        with pytest.raises(DataError, match=message):
            runner.run({name: torch.from_numpy(np.array(array)) for name, array in feeds.items()})


def test_things_that_are_no_tensors(start: Start) -> None:
    with start() as runner:
        with pytest.raises(DataError, match="input 'x' got a list"):
            runner.run({"x": [[1.0]]})
        with pytest.raises(DataError, match="got dtype bfloat16; expected float32"):
            runner.run({"x": torch.ones(2, 3, dtype=torch.bfloat16)})
        with pytest.raises(DataError, match="got dtype float16"):
            runner.run({"x": torch.ones(2, 3, dtype=torch.float16)})


def test_each_profile_has_its_context(start: Start) -> None:
    library = Library(profiles=(((1, 3), (8, 3), (32, 3)), ((1, 3), (1, 3), (1, 3)), ((2, 3), (4, 3), (8, 3))))
    with start(library, cuda_graph=False) as runner:
        for rows in (1, 8, 32, 3, 1, 9):
            x = batches(rows)
            np.testing.assert_array_equal(runner.infer({"x": x})["y"], x * 2)
        assert [(c.profile, c.runs) for c in contexts(library)] == [(1, 2), (2, 2), (0, 2)]
        with pytest.raises(DataError, match=r"x 1x3 to 32x3; or x 1x3; or x 2x3 to 8x3"):
            runner.infer({"x": batches(33)})


def test_a_static_engine(start: Start) -> None:
    library = Library(profiles=(((2, 3), (2, 3), (2, 3)),))
    with start(library, facts={"profiles": []}) as runner:
        np.testing.assert_array_equal(runner.infer({"x": X})["y"], X * 2)
        with pytest.raises(DataError, match="3 on axis 0"):
            runner.infer({"x": batches(3)})


def test_a_shape_that_comes_again_is_captured(start: Start) -> None:
    library = Library()
    with start(library) as runner:
        first, second, third = (runner.run({"x": torch.full((2, 3), value)})["y"] for value in (1.0, 2.0, 3.0))
        plain, captured = contexts(library)
        assert (plain.runs, captured.runs) == (1, 3)  # the warm-up, and two replays
        # An output that was handed out is not written to again.
        assert [float(t[0, 0]) for t in (first, second, third)] == [2.0, 4.0, 6.0]
        assert len({t.data_ptr() for t in (first, second, third)}) == 3
        # Another shape leaves the captured context alone: its graph would be spoilt.
        runner.run({"x": torch.ones(5, 3)})
        assert (plain.shape, captured.shape) == ((5, 3), (2, 3))
        assert torch.equal(runner.run({"x": torch.ones(2, 3)})["y"], torch.full((2, 3), 2.0))
        assert (plain.runs, captured.runs) == (2, 4)


def test_graphs_are_captured_where_they_pay(start: Start) -> None:
    width = GRAPH_BYTES // 8  # input and output of two rows have twice as many bytes as are captured unasked
    wide = Library(width=width, profiles=(((1, width), (1, width), (2, width)),))
    with start(wide) as runner:
        for rows in (2, 2, 1, 1):
            runner.run({"x": torch.ones(rows, width)})
        assert [c.shape[0] for c in contexts(wide)] == [1, 1]
    many = Library(profiles=(((1, 3), (4, 3), (99, 3)),))
    with start(many) as runner:
        for rows in range(1, GRAPHS + 3):
            for _ in range(2):
                assert torch.equal(runner.run({"x": torch.ones(rows, 3)})["y"], torch.full((rows, 3), 2.0))
        assert len(contexts(many)) == 1 + GRAPHS
    never = Library()
    with start(never, cuda_graph=False) as runner:
        for _ in range(3):
            runner.infer({"x": X})
        assert len(contexts(never)) == 1


def test_what_cannot_be_captured_runs_without(start: Start) -> None:
    library = Library()
    with start(library, host={"capturable": False}) as runner:
        for _ in range(4):
            np.testing.assert_array_equal(runner.infer({"x": X})["y"], X * 2)
        assert len(contexts(library)) == 1
    with start(Library(), host={"capturable": False}, cuda_graph=True) as runner:
        runner.infer({"x": X})
        with pytest.raises(EngineError, match=r"no CUDA graph of .* stream is capturing"):
            runner.infer({"x": X})


def test_things_are_freed_in_order_and_once(start: Start) -> None:
    library = Library()
    with start(library) as runner:
        for _ in range(3):
            runner.infer({"x": X})
    runner.close()
    assert library.events[-4:] == ["no context", "no context", "no engine", "no runtime"]
    for call in (runner.infer, runner.run):
        with pytest.raises(RuntimeError, match="closed"):
            call({"x": X})


def test_host_code_is_refused_and_the_checked_bytes_are_given(start: Start) -> None:
    library = Library()
    with start(library):
        assert ("host code", False, PLAN) in library.events


@pytest.mark.parametrize(
    ("fail", "message"),
    [
        ("context", "cannot prepare .*: out of memory; free memory"),
        ("shape", "refuses x 2x3: no such shape"),
        ("address", "refuses the memory of 'x': it gives no reason"),
        ("execute", "failed while running .*: illegal memory access"),
    ],
)
def test_failures_while_running(start: Start, fail: str, message: str) -> None:
    library = Library(fail={fail})
    with start(library) as runner:
        with pytest.raises(EngineError, match=message):
            runner.infer({"x": X})
        library.fail.clear()
        np.testing.assert_array_equal(runner.infer({"x": X})["y"], X * 2)


def test_a_profile_that_cannot_be_used(start: Start) -> None:
    both = (((1, 3), (8, 3), (32, 3)), ((1, 3), (1, 3), (1, 3)))
    with start(Library(profiles=both, fail={"profile"})) as runner, pytest.raises(EngineError, match="cannot use profile 1"):
        runner.infer({"x": batches(1)})


def test_an_output_sized_by_the_data(start: Start) -> None:
    with start(Library(data_dependent=True)) as runner, pytest.raises(EngineError, match=r"size of output 'y'.*depends on"):
        runner.infer({"x": X})


def test_an_engine_that_does_not_deserialize(start: Start) -> None:
    library = Library(fail={"deserialize"})
    with pytest.raises(EngineError, match=r"TensorRT does not load .*: the magic tag is wrong; build it again here"):
        start(library)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": ("x", "z")}, "its manifest, not the engine, has the tensor 'y'"),
        ({"names": ("y", "x")}, "has 'x' as output -1x3 float32, its manifest as input -1x3 float32"),
        ({"dtype": "FP8"}, "has 'x' as input -1x3 FP8"),
        ({"width": 4, "profiles": (((1, 4), (4, 4), (8, 4)),)}, "has 'x' as input -1x4 float32"),
        ({"shape_on_host": True}, "the shape 'x' as values on the host"),
    ],
)
def test_an_engine_that_is_not_what_its_manifest_says(start: Start, changes: dict[str, Any], message: str) -> None:
    library = Library()
    facts = {
        "inputs": [{"name": "x", "shape": ["n", 3], "dtype": "float32"}],
        "outputs": [{"name": "y", "shape": ["n", 3], "dtype": "float32"}],
        "profiles": [{"min": {"x": [1, 3]}, "opt": {"x": [4, 3]}, "max": {"x": [8, 3]}}],
    }
    library = replace(library, **changes)
    with pytest.raises(EngineError, match=message):
        start(library, facts=facts)
    assert library.events[-2:] == ["no engine", "no runtime"]


def test_files_are_checked_before_library_and_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any) -> Any:
        raise MissingDependency("not here")

    path = tmp_path / "m.engine"
    write_test_engine(path)
    monkeypatch.setattr(module, "load", absent)
    monkeypatch.setattr(module, "Cuda", absent)
    with pytest.raises(EngineError, match="is fp16, wanted is int8"):
        TensorRTRunner(path, precision=Precision.INT8)
    with pytest.raises(MissingDependency):
        TensorRTRunner(path, precision=Precision.FP16)
    path.with_name("m.onnx").write_bytes(b"new")
    with pytest.raises(EngineError, match="stale"):
        TensorRTRunner(path)
    path.write_bytes(PLAN[:-1])
    with pytest.raises(EngineError, match="cut short"):
        TensorRTRunner(path)
    path.unlink()
    with pytest.raises(EngineError, match="does not exist"):
        TensorRTRunner(path)


def test_the_library_is_compared_before_a_gpu_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.engine"
    write_test_engine(path)
    monkeypatch.setattr(module, "load", lambda backend: Library(version="1.9").module())
    monkeypatch.setattr(module, "Cuda", lambda _: pytest.fail("asked for a GPU"))
    with pytest.raises(EngineError, match=r"tensorrt-rtx 1\.7\.1\.116, here is 1\.9"):
        TensorRTRunner(path)
    write_test_engine(path, backend="tensorflow")
    with pytest.raises(EngineError, match="there is no backend 'tensorflow'"):
        TensorRTRunner(path)


def test_the_gpu_is_compared(start: Start) -> None:
    with pytest.raises(EngineError, match=r"built for compute capability 8\.9, this GPU has 8\.6"):
        start(host={"capability": (8, 6)})
    rtx = {"backend": "tensorrt-rtx", "compute_capabilities": ["8.0", "8.6", "8.9", "12.0+"]}
    with pytest.raises(EngineError, match=r"no GPU of compute capability 9\.0.*--backend tensorrt --fp16"):
        start(host={"capability": (9, 0)}, facts=rtx)
    with pytest.raises(EngineError, match=r"this GPU has 7\.5.*--compute-capability 7\.5"):
        start(host={"capability": (7, 5)}, facts=rtx)
    for newer in ((12, 1), (13, 0)):
        with start(host={"capability": newer}, facts=rtx) as runner:
            np.testing.assert_array_equal(runner.infer({"x": X})["y"], X * 2)


def test_tensorrt_rtx_captures_by_itself_and_keeps_its_kernels(start: Start, tmp_path: Path) -> None:
    cache = tmp_path / "kernels.cache"
    rtx = {"backend": "tensorrt-rtx"}
    library = Library()
    with start(library, facts=rtx, cuda_graph=True, runtime_cache=cache) as runner:
        assert runner.name == "TensorRT-RTX"
        for _ in range(3):
            np.testing.assert_array_equal(runner.infer({"x": X})["y"], X * 2)
        (context,) = contexts(library)
        assert context.config.cuda_graph_strategy == "whole"
        assert library.cache is None
    del context
    assert cache.read_bytes() == b"kernels"
    with start(library, facts=rtx, runtime_cache=cache) as runner:
        assert library.cache == b"kernels"
        runner.infer({"x": X})
        assert contexts(library)[0].config.cuda_graph_strategy == "off"


def test_a_runtime_cache_is_tensorrt_rtxs_alone(start: Start, tmp_path: Path) -> None:
    with start(runtime_cache=tmp_path / "kernels.cache") as runner:
        runner.infer({"x": X})
    assert not (tmp_path / "kernels.cache").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu() -> None:
    with pytest.raises(MissingDependency, match="runs on an NVIDIA GPU, and none is usable here") as caught:
        Cuda(0)
    assert caught.value.exit_code == 4
    assert caught.value.fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_a_good_engine_is_still_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_test_engine(tmp_path / "m.engine")
    monkeypatch.setattr(module, "load", lambda backend: Library(version="1.7.1.116").module())
    with pytest.raises(MissingDependency, match="NVIDIA GPU"):
        TensorRTRunner(tmp_path / "m.engine")


def test_the_plugin_library_that_an_engine_was_built_with_is_registered_first(start: Start, tmp_path: Path) -> None:
    library = tmp_path / "libaff_deploy.so"
    library.write_bytes(b"plugins")
    facts = {"plugin": {"file": library.name, "sha256": sha256(library)}}
    fake = Library()
    with start(fake, facts=facts) as runner:
        np.testing.assert_array_equal(runner.infer({"x": X})["y"], X * 2)
    order = [event[0] for event in fake.events if isinstance(event, tuple)]
    assert order.index("plugins") < order.index("host code")
    assert ("plugins", str(library)) in fake.events

    with pytest.raises(EngineError, match="does not load the plugins of"):
        start(Library(fail={"plugins"}), facts=facts)
    library.write_bytes(b"other plugins")
    with pytest.raises(EngineError, match="is another plugin library than"):
        start(facts=facts)
    library.unlink()
    with pytest.raises(EngineError, match="needs the plugin library"):
        start(facts=facts)
