"""Eager PyTorch: the reference that everything else is held against."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType

import numpy as np
import torch
from torch import nn

from aff_deploy.errors import NetworkError
from aff_deploy.runtimes import Array, Feeds, check_feeds, numpy_dtype, shape_text
from aff_deploy.spec import INTEGER_BOUNDS, TensorSpec


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """`module` in eval mode, gradients and autocast off; afterwards every submodule's flag is as before."""
    flags = [(part, part.training) for part in module.modules()]
    device = device_of(module)
    try:
        module.eval()
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield module
    finally:
        # The module's own train() first: some networks do more in it than set the flag.
        module.train(flags[0][1])
        for part, flag in flags:
            part.training = flag


def device_of(module: nn.Module) -> torch.device:
    """Where the module's first parameter or buffer lives; the CPU for one without any."""
    for tensor in (*module.parameters(), *module.buffers()):
        return tensor.device
    return torch.device("cpu")


def tensors_of(feeds: Feeds, inputs: Sequence[TensorSpec], device: torch.device) -> tuple[torch.Tensor, ...]:
    """The feeds as tensors of the specs' dtypes, in the order of the specs."""
    # A copy: torch refuses to share numpy's read-only memory, and a forward may write in place.
    return tuple(
        torch.from_numpy(np.array(feeds[spec.name], order="C")).to(device=device, dtype=getattr(torch, spec.dtype))
        for spec in inputs
    )


def flatten_outputs(value: object) -> tuple[tuple[str, ...] | None, tuple[torch.Tensor, ...]]:
    """What a forward returned, as names (where it gives any) and tensors.

    Accepted: a tensor; a tuple or list of tensors (a named tuple gives names); a dict of tensors
    with string keys.

    Raises:
        NetworkError: naming the position and type of what is not a tensor.
    """
    if isinstance(value, torch.Tensor):
        _require_plain(0, value)
        return None, (value,)
    names: tuple[str, ...] | None = None
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise NetworkError(
                f"the network returns a dict with the key {bad[0]!r}", fix="use strings as keys: they name the outputs"
            )
        names = tuple(value)
        items = list(value.items())
    elif isinstance(value, (tuple, list)):
        names = getattr(value, "_fields", None)
        items = list(enumerate(value)) if names is None else list(zip(names, value, strict=True))
    else:
        raise NetworkError(
            f"the network returns a {type(value).__name__}", fix="return a tensor, or a tuple, list or dict of tensors"
        )
    if not items:
        raise NetworkError("the network returns nothing", fix="return at least one tensor")
    for position, item in items:
        if isinstance(item, torch.Tensor):
            _require_plain(position, item)
        else:
            kind = "a nested " + type(item).__name__ if isinstance(item, (tuple, list, Mapping)) else type(item).__name__
            raise NetworkError(
                f"output {position!r} of the network is {kind}, not a tensor",
                fix="return a tensor, or one flat tuple, list or dict of tensors",
            )
    return names, tuple(item for _, item in items)


def _require_plain(position: object, tensor: torch.Tensor) -> None:
    """Refuse tensors of which neither numpy nor ONNX has a counterpart."""
    found = [
        ("nested", tensor.is_nested, "pad it to one tensor"),
        ("complex", tensor.is_complex(), "return its real and imaginary parts (torch.view_as_real)"),
        (f"{str(tensor.layout).removeprefix('torch.')}", tensor.layout != torch.strided, "return it dense (to_dense())"),
        ("on the meta device, without values", tensor.is_meta, "build the network on the CPU"),
        ("quantised", tensor.is_quantized, "return it dequantised"),
    ]
    for kind, present, fix in found:
        if present:
            raise NetworkError(f"output {position!r} of the network is {kind}", fix=fix)


def output_names(names: Sequence[str] | None, count: int, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """The names of `count` outputs: the network's own, else ``output`` or ``output_0``, ``output_1`` ...

    An output may not carry the name of an input in a file, so such a name gets ``_out`` appended.
    """
    wanted = tuple(names) if names is not None else ("output",) if count == 1 else tuple(f"output_{i}" for i in range(count))
    taken = {spec.name for spec in inputs}
    chosen: list[str] = []
    for name in wanted:
        while name in taken:
            name += "_out"
        taken.add(name)
        chosen.append(name)
    return tuple(chosen)


def run_forward(
    module: nn.Module, inputs: Sequence[TensorSpec], tensors: Sequence[torch.Tensor]
) -> tuple[tuple[str, ...] | None, tuple[torch.Tensor, ...]]:
    """Run an evaluating module and flatten what it returns.

    Raises:
        NetworkError: the forward raised (its error is the ``__cause__``), or returned what is not tensors.
    """
    try:
        value = module(*tensors)
    except Exception as error:
        given = ", ".join(f"{s.name} {shape_text(tuple(t.shape))} {s.dtype}" for s, t in zip(inputs, tensors, strict=True))
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, RuntimeError):
            reason = f"{type(error).__name__}: {reason}"
        if instead := _find_convention(module, inputs, tensors):
            raise NetworkError(
                f"the network's forward takes {instead}, and inputs are passed one by one ({given})",
                fix="wrap it in a module whose forward takes tensors and passes them on",
            ) from error
        raise NetworkError(f"forward failed on input {given}: {reason}", fix=_advise(module, inputs)) from error
    return flatten_outputs(value)


def _advise(module: nn.Module, inputs: Sequence[TensorSpec]) -> str:
    """What to look at where a forward failed."""
    held = {str(tensor.dtype).removeprefix("torch.") for tensor in module.parameters() if tensor.is_floating_point()}
    fed = {spec.dtype for spec in inputs if "float" in spec.dtype}
    if held and fed and not held & fed:
        kind = sorted(held)[0]
        return f"its weights are {kind}: give its input as {kind} too, or build it with net.float()"
    fix = "check the inputs' number, shapes and dtypes against the network"
    if any(spec.dtype in INTEGER_BOUNDS for spec in inputs):
        fix += ", and say what integers it takes (--range NAME:LOW:HIGH, or distribution in a recipe)"
    return fix


def _find_convention(module: nn.Module, inputs: Sequence[TensorSpec], tensors: Sequence[torch.Tensor]) -> str:
    """What a forward takes that failed on separate tensors, tried out: a dict, a list, keywords; empty where none works."""
    named = {spec.name: tensor for spec, tensor in zip(inputs, tensors, strict=True)}
    try:
        module(dict(named))
        return "a dict of tensors"
    except KeyError as error:
        return f"a dict with the key {error.args[0]!r}" if error.args else "a dict of tensors"
    except Exception:  # whatever the network raises: it does not take this
        pass
    with contextlib.suppress(Exception):
        module(list(tensors))
        return "one list of tensors"
    with contextlib.suppress(Exception):
        module(**named)
        return "its inputs by keyword, in another order or after others"
    return ""


def to_numpy(tensor: torch.Tensor) -> Array:
    """A tensor's values on the CPU; bfloat16, which numpy lacks, as float32."""
    tensor = tensor.detach().to("cpu")
    result: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return result


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """What factories such as ``torch.zeros`` make while a forward runs; None leaves it."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype or before)
        yield
    finally:
        torch.set_default_dtype(before)


class PyTorchRunner:
    """Runs an ``nn.Module`` eagerly, in eval mode, where its parameters live.

    Args:
        module: left as it is between calls: every training flag is restored.
        inputs: the forward's positional arguments.
        outputs: names for what it returns; by default its own (dict keys, named tuple fields),
            else ``output`` or ``output_0``, ``output_1`` ...
    """

    name = "PyTorch"

    def __init__(self, module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[str] | None = None) -> None:
        self._module = module
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs) if outputs is not None else None
        self._default_dtype: torch.dtype | None = None

    def copy_in_double(self) -> PyTorchRunner:
        """A runner of a copy of the network in float64: what the rounding of this one is measured against.

        Tensors that the forward itself makes are float64 too, unless it names another type.

        Raises:
            NetworkError: the network cannot be copied.
        """
        try:
            module = copy.deepcopy(self._module).double()
        except Exception as error:  # whatever a module's own attributes raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise NetworkError(f"the network cannot be copied into float64: {reason}") from None
        floats = ("float16", "bfloat16", "float32")
        inputs = [replace(spec, dtype="float64") if spec.dtype in floats else spec for spec in self._inputs]
        runner = PyTorchRunner(module, inputs, self._outputs)
        runner.name, runner._default_dtype = "PyTorch in float64", torch.float64
        return runner

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The outputs' names; where none were given, this runs the network once to find them."""
        if self._outputs is None:
            self.infer({spec.name: np.zeros(spec.concrete(), numpy_dtype(spec.dtype)) for spec in self._inputs})
        assert self._outputs is not None
        return self._outputs

    def infer(self, feeds: Feeds) -> dict[str, Array]:
        """The outputs by name.

        Raises:
            DataError: the feeds do not fit the inputs.
            NetworkError: the forward failed, or returned something else than tensors or than was named.
        """
        check_feeds(self._inputs, feeds)
        with evaluating(self._module), torch.inference_mode(), _default_dtype(self._default_dtype):
            tensors = tensors_of(feeds, self._inputs, device_of(self._module))
            names, values = run_forward(self._module, self._inputs, tensors)
            arrays = [to_numpy(value) for value in values]
        if self._outputs is None:
            self._outputs = output_names(names, len(values), self._inputs)
        if len(self._outputs) != len(arrays):
            raise NetworkError(
                f"the network returns {len(arrays)} outputs where {len(self._outputs)} are named",
                fix=f"name {len(arrays)} outputs instead of {', '.join(self._outputs)}",
            )
        return dict(zip(self._outputs, arrays, strict=True))

    def __enter__(self) -> PyTorchRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None:
        return None
