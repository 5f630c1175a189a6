"""What a parser or builder complains about, in words that say what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

from aff_deploy.errors import AffDeployError, EngineError, MissingDependency
from aff_deploy.runtimes.backends import Backend


class ParserError(Protocol):
    """TensorRT's ``ParserError``, as far as it is read here."""

    def desc(self) -> str: ...
    def node_name(self) -> str: ...
    def node_operator(self) -> str: ...
    def local_function_stack(self) -> list[str]: ...


# What the complaint says (any case), and the way round.
_WAYS_ROUND = (
    (
        "no importer|not supported|unsupported op|plugin not found|getplugincreator",
        "replace the operator in the network, or export with another --opset",
    ),
    ("int32 bias|zero.?point", "quantise with aff-deploy build-engine --int8, from the model before it was quantised"),
    ("uint8|double|float64|complex|data type", "export the network with float32 and int64 tensors"),
    ("data.?dependent|nonzero|shape tensor", "give the network static shapes, or keep the data-dependent part outside it"),
    ("profile|out of range dimensions|dynamic", "give --min-shapes, --opt-shapes and --max-shapes that fit the model"),
    (
        "weights.*(type|mismatch)|types? mismatch|same (input )?type",
        "the model mixes types: build from its float32 original, and let --fp16 convert it",
    ),
)
_BUILD_WAYS_ROUND = (
    ("within workspace limit|insufficient workspace", "give a larger --workspace, or leave it out"),
    ("out of memory|std::bad_alloc", "free memory, or lower the largest batch in --max-shapes"),
    ("fp8", "use --int8 or --fp16: this builder, or this GPU, takes no fp8 here"),
    *_WAYS_ROUND,
)
_NO_GPU = re.compile(
    r"cudaError (35|100)\b|no CUDA-capable device|driver version is insufficient|CUDA initialization failure", re.IGNORECASE
)
_ECHO = "[checkMacros.cpp::catchCudaError"
_LOOK = "see what the model holds with: aff-deploy inspect FILE"


def parse_failure(backend: Backend, errors: Sequence[ParserError], logged: Sequence[str]) -> AffDeployError:
    """The error for a model that the parser refuses."""
    if not errors:
        return build_failure(backend, logged)
    first = errors[0]
    node, operator, reason = first.node_name(), first.node_operator(), _plain(first.desc())
    where = f"node {node!r} ({operator})" if node and operator else f"operator {operator}" if operator else "the model"
    stack = first.local_function_stack()
    inside = f", inside the function call {stack[0]!r}" if stack else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return EngineError(f"{backend.title} cannot take {where}{inside}: {reason}{more}", fix=_way_round(reason, _WAYS_ROUND))


def build_failure(backend: Backend, logged: Sequence[str]) -> AffDeployError:
    """The error for a build that failed; `logged` are the builder's own error messages."""
    if not backend.needs_gpu_to_build:
        # Without a GPU every failure is followed by one about the GPU, which says nothing of the model.
        logged = [message for message in logged if not message.startswith(_ECHO)] or logged
    text = " ".join(logged)
    if backend.needs_gpu_to_build and (_NO_GPU.search(text) or not logged):
        fix = "build on the machine that will run it, or use --backend tensorrt-rtx, which needs none"
        return MissingDependency(f"{backend.title} builds on the GPU that it builds for, and there is none here", fix=fix)
    reason = _plain(logged[0]) if logged else "no reason given"
    return EngineError(f"{backend.title} cannot build the engine: {reason}", fix=_way_round(text, _BUILD_WAYS_ROUND))


def _way_round(text: str, table: Sequence[tuple[str, str]]) -> str:
    return next(
        (fix for pattern, fix in table if re.search(pattern, text, re.I)), "see the model with: aff-deploy inspect FILE"
    )


def _plain(text: str) -> str:
    """One line, without the place in the library's own sources and the C++ of its assertion."""
    line = " ".join(text.split(_ECHO)[0].split())
    if quoted := re.search(r'&& "([^"]+)"', line):
        line = quoted[1]
    line = re.sub(r"\(?In \w+ at \S+?:\d+( \))?", "", line)
    line = re.sub(r"^I\w+::\w+: Error Code \d+: ", "", line)
    line = "it is not supported" if line == "false" else line
    return line[:300].strip(" .") or "no reason given"
