"""The headline of a deployment is the worst of what stands under it."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from aff_deploy.report import render_report
from aff_deploy.report.verdicts import FAILED, NOT_RUN, PASSED, headline, judge
from tests.report.pages import MANIFEST, Page


def deployment(*, model: bool = True, engine: bool | None = True, not_run: str = "", off: float = 0.0125) -> dict[str, Any]:
    """A manifest: whether the model and the engine (None: there is none) passed, why it was not run, how far off it is."""
    manifest = copy.deepcopy(MANIFEST)
    manifest["validation"]["passed"] = model
    if engine is None:
        manifest["engine"] = {"built": False, "why": "no backend is here"}
        return manifest
    manifest["engine"]["not_run"] = not_run
    check = manifest["engine"]["checks"][0]
    check["passed"] = engine
    check["outputs"][0] |= {"max_abs": off, "argmax_agreement": 0.5}
    return manifest


@pytest.mark.parametrize(
    ("manifest", "state", "words", "colour"),
    [
        (deployment(engine=None), PASSED, "Passed: model.onnx ran here", "good"),
        (deployment(), PASSED, "Passed: model.onnx and model.engine ran here", "good"),
        (deployment(not_run="no GPU", off=1.92), NOT_RUN, "12 % of the output's scale (model.engine)", "open"),
        (deployment(off=1.92), PASSED, "12 % of the output's scale (model.engine)", "good"),
        (deployment(engine=False), FAILED, "FAILED: model.engine computes something else", "bad"),
        (deployment(model=False, not_run="no GPU"), FAILED, "FAILED: model.onnx computes something else", "bad"),
    ],
)
def test_the_worst_file_makes_the_headline(manifest: dict[str, Any], state: str, words: str, colour: str) -> None:
    found, said = headline(judge(manifest))
    assert found == state
    assert words in said
    page = render_report(manifest)
    assert f'class="verdict {colour}"' in page
    assert said in Page(page).text
    assert (state == PASSED) == said.startswith("Passed")


def test_each_file_has_a_verdict_of_its_own() -> None:
    model, engine = judge(deployment(not_run="there is no GPU", off=1.92))
    assert (model.file, model.state, engine.file, engine.state) == ("model.onnx", PASSED, "model.engine", NOT_RUN)
    assert engine.why_not_run == "there is no GPU"
    assert "fp16 proven; typed ONNX differs from PyTorch by 12 %" in engine.words
    assert "50.00 % the same answers" in engine.words
    assert model.difference == pytest.approx(3.25e-6 / 16)


def test_a_property_that_was_skipped_is_not_called_passed() -> None:
    manifest = copy.deepcopy(MANIFEST)
    manifest["validation"]["checks"] = [{"name": "permuted rows", "passed": True, "skipped": True, "detail": "one row"}]
    assert "permuted rows not checked one row" in Page(render_report(manifest)).text
