"""What a recipe says, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from aff_deploy.artifact import sha256
from aff_deploy.errors import DataError, InputError, WeightsError
from aff_deploy.spec import TOLERANCES, Precision, ShapeProfile, TensorSpec, Tolerance

if TYPE_CHECKING:
    import numpy as np

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True)
class Preprocessing:
    """How raw data becomes the first input: ``(raw * scale - mean) / std``, per channel (axis 1).

    `layout` is the raw data's: ``as-is``, or ``channels-last`` where channels must move to axis 1.

    `resize` and `crop` concern image files alone, whose pixels become raw data: the short side in pixels that an image is
    scaled to (0: what just covers the crop), and height and width of what is cut from its centre (empty: the input's).
    """

    layout: str = "as-is"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize: int = 0
    crop: tuple[int, ...] = ()

    def apply(self, raw: np.ndarray[Any, Any], dtype: str = "float32") -> np.ndarray[Any, Any]:
        """Raw data (any real dtype, N first) as the network's input of the given dtype.

        Raises:
            DataError: `mean` or `std` has another number of channels than the data.
        """
        import numpy as np

        if replace(self, resize=0, crop=()) == Preprocessing():
            return raw.astype(dtype, copy=False)
        data = np.moveaxis(raw, -1, 1) if self.layout == "channels-last" and raw.ndim > 2 else raw
        shape = (-1, *[1] * (data.ndim - 2)) if data.ndim > 1 else (-1,)
        mean, std = (np.asarray(values, dtype=np.float32).reshape(shape) for values in (self.mean, self.std))
        try:
            ready = (data.astype(np.float32) * np.float32(self.scale) - mean) / std
        except ValueError:
            raise DataError(
                f"preprocessing has {len(self.mean)} means and {len(self.std)} stds, not what data of shape {raw.shape} needs",
                fix="give one value, or one per channel (check 'layout')",
            ) from None
        return np.ascontiguousarray(ready).astype(dtype, copy=False)


@dataclass(frozen=True)
class Evaluation:
    """Held-out data: an .npz (never unpickled) with raw inputs and integer class labels.

    `inputs` maps each network input to its key in the file; `labels` is '' where there are none, and then
    only parity is measured. `accuracy` (0 to 1) is what the network is known to reach.
    """

    data: Path
    sha256: str
    inputs: Mapping[str, str]
    labels: str = ""
    samples: int | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class CalibrationData:
    """Data that ranges for int8 and fp8 are taken from: an .npz (never unpickled) with raw inputs, or a folder of images.

    `inputs` maps each network input to its key in the file, and is empty for a folder; `samples` is how many the file has,
    None where that is not said.
    """

    data: Path
    sha256: str
    inputs: Mapping[str, str]
    samples: int | None = None


@dataclass(frozen=True)
class ExportSettings:
    """How the network becomes ONNX."""

    opset: int = 18
    exporter: str = "dynamo"


@dataclass(frozen=True)
class EngineSettings:
    """The engine of a deployment.

    `enabled` is True where the recipe asks for one, False where it wants none, and None where it says nothing: then there
    is one where a backend can build it. `io` is the type of the engine's inputs and outputs, ``fp32`` or ``fp16``;
    `backend` is ``tensorrt``, ``tensorrt-rtx``, or '' for what is installed; `keep_fp32` names nodes that stay in fp32.
    """

    enabled: bool | None = None
    precision: Precision = Precision.FP16
    io: Literal["fp32", "fp16"] = "fp32"
    backend: str = ""
    keep_fp32: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """One deployable model. Paths are absolute and inside `folder`.

    `network` is ``package.module:callable`` or ``file.py:callable`` relative to `folder`, called with `arguments`.
    `weights_key` is under which name a PyTorch file holds the state dict, '' where it is found.
    `profile` is that of the inputs, `profiles` are what ``[[profiles]]`` says; see `engine_profiles`.
    """

    name: str
    network: str
    folder: Path
    inputs: tuple[TensorSpec, ...]
    description: str = ""
    arguments: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    weights: Path | None = None
    weights_sha256: str = ""
    weights_key: str = ""
    preprocessing: Preprocessing = Preprocessing()
    profile: ShapeProfile | None = None
    tolerance: Mapping[Precision, Tolerance] = field(default_factory=lambda: TOLERANCES)
    evaluation: Evaluation | None = None
    calibration: CalibrationData | None = None
    export: ExportSettings = ExportSettings()
    engine: EngineSettings = EngineSettings()
    profiles: tuple[ShapeProfile, ...] = ()
    serving: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)

    @property
    def engine_profiles(self) -> tuple[ShapeProfile, ...]:
        """The shape ranges of an engine: `profiles`, without which `profile` alone; none where every shape is fixed."""
        return self.profiles or (() if self.profile is None else (self.profile,))

    def checked_weights(self) -> Path | None:
        """The weights file, its SHA-256 compared; None for a recipe without one.

        Raises:
            WeightsError: the file is not the one that the recipe was made with.
        """
        if self.weights is not None and self.weights_sha256:
            _check_sha256(self.weights, self.weights_sha256, WeightsError)
        return self.weights

    def checked_evaluation(self) -> Evaluation | None:
        """The evaluation, the SHA-256 of its data compared; None for a recipe without one.

        Raises:
            DataError: the file is not the one that the recipe was made with.
        """
        if self.evaluation is not None and self.evaluation.sha256:
            _check_sha256(self.evaluation.data, self.evaluation.sha256, DataError)
        return self.evaluation

    def checked_calibration(self) -> CalibrationData | None:
        """The calibration data, the SHA-256 of its file compared; None for a recipe without any.

        Raises:
            DataError: the file is not the one that the recipe was made with.
        """
        if self.calibration is not None and self.calibration.sha256:
            _check_sha256(self.calibration.data, self.calibration.sha256, DataError)
        return self.calibration


def _check_sha256(path: Path, expected: str, error: type[InputError]) -> None:
    try:
        actual = sha256(path)
    except OSError as reason:
        raise error(f"cannot read {path}: {reason.strerror}", fix="make it readable") from None
    if actual != expected:
        raise error(
            f"{path} has sha256 {actual[:12]}..., but the recipe says {expected[:12]}...",
            fix="restore the original file, or correct sha256 in the recipe if the change is meant",
        )
