"""Complaints of parsers and builders, told with the node and the way round."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from aff_deploy.engine.complaints import build_failure, parse_failure
from aff_deploy.errors import EngineError, MissingDependency
from aff_deploy.runtimes.backends import TENSORRT, TENSORRT_RTX


@dataclass
class Complaint:
    """As TensorRT's ParserError."""

    text: str
    name: str = ""
    operator: str = ""
    stack: tuple[str, ...] = ()

    def desc(self) -> str:
        return self.text

    def node_name(self) -> str:
        return self.name

    def node_operator(self) -> str:
        return self.operator

    def local_function_stack(self) -> list[str]:
        return list(self.stack)


def test_node_operator_and_way_round_are_named() -> None:
    first = Complaint("No importer registered for op: Det", "/head/Det", "Det", ("site_3",))
    error = parse_failure(TENSORRT_RTX, [first, Complaint("another")], [])
    assert isinstance(error, EngineError)
    assert error.message == (
        "TensorRT-RTX cannot take node '/head/Det' (Det), inside the function call 'site_3': "
        "No importer registered for op: Det (and 1 more)"
    )
    assert error.fix == "replace the operator in the network, or export with another --opset"


@pytest.mark.parametrize(
    ("logged", "fix"),
    [
        ("Tactic Selection: no tactics to implement the operation within workspace limit", "give a larger --workspace"),
        ("std::bad_alloc", "free memory"),
        ("something nobody has seen", "aff-deploy inspect"),
    ],
)
def test_a_failed_build_says_what_to_change(logged: str, fix: str) -> None:
    error = build_failure(TENSORRT_RTX, [f"IBuilder::buildSerializedNetwork: Error Code 1: Myelin ({logged})"])
    assert isinstance(error, EngineError)
    assert logged in error.message
    assert "Error Code" not in error.message
    assert fix in error.fix


@pytest.mark.parametrize(
    "logged", ["cudaError 35: CUDA driver version is insufficient", "CUDA initialization failure with error: 100"]
)
def test_a_missing_gpu_is_no_fault_of_the_model(logged: str) -> None:
    error = build_failure(TENSORRT, [logged])
    assert isinstance(error, MissingDependency)
    assert "--backend tensorrt-rtx" in error.fix
