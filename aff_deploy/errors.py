"""Every error that aff-deploy raises on purpose.

    AffDeployError
    ├── CheckFailed            exit 1   a validation, precision proof or verify said no
    ├── UsageError             exit 2   the request itself makes no sense
    ├── InputError             exit 3   what was given cannot be used
    │   ├── ModelError                  an ONNX file: unreadable, malformed, unsupported
    │   ├── NetworkError                a network: not importable, not a module, fails in forward
    │   ├── WeightsError                a checkpoint: unreadable, wrong hash, does not fit
    │   ├── RecipeError                 a recipe: unknown key, wrong type, missing file
    │   ├── EngineError                 an engine or its manifest: altered, truncated, stale, of another library or GPU
    │   ├── DataError                   evaluation or calibration data that does not fit
    │   └── OutputError                 an output that cannot be written
    └── MissingDependency      exit 4   a package, library or device is not here

A message names the thing and, after a semicolon, the way out (``fix``). Anything else that
escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class AffDeployError(Exception):
    """Base of all deliberate errors.

    Args:
        message: what is wrong, naming the file, tensor or option.
        fix: what the person can do about it; becomes part of ``str(error)``. What can be set is called as the command
            line calls it (``--calib``); whoever reports the error has it in the words of what the person gave:
            `aff_deploy.recipe.remedies` in those of a recipe, `aff_deploy.cli.remedies` in those of a command.
    """

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, fix: str = "") -> None:
        self.message = message
        self.fix = fix
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}" if self.fix else self.message


class CheckFailed(AffDeployError):
    """A comparison was made and the answer is no."""

    exit_code = 1


class UsageError(AffDeployError):
    """The request contradicts itself or cannot be parsed."""

    exit_code = 2


class InputError(AffDeployError):
    """Something that was handed in cannot be used."""

    exit_code = 3


class ModelError(InputError):
    """An ONNX model that is unreadable, malformed, hostile or unsupported."""


class NetworkError(InputError):
    """A network that cannot be imported, built or run."""


class WeightsError(InputError):
    """A checkpoint that is unreadable, altered, or of another network."""


class RecipeError(InputError):
    """A recipe with an unknown key, a wrong value or a missing companion file."""


class EngineError(InputError):
    """An engine, or the manifest beside it, that must not be loaded, or a model that no engine can be built from."""


class DataError(InputError):
    """Input data whose names, shapes or types do not fit the network."""


class OutputError(InputError):
    """An output path that cannot be written."""


class MissingDependency(AffDeployError):
    """A package, library or device that this machine does not have."""

    exit_code = 4

    def __init__(self, message: str, *, extra: str = "", fix: str = "") -> None:
        super().__init__(message, fix=fix or (f"pip install 'aff-deploy[{extra}]'" if extra else ""))
