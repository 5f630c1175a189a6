"""The report: everything that matters is on it, nothing on it is taken for markup, and it needs nothing else."""

from __future__ import annotations

import copy
import html
import re
from typing import Any

from aff_deploy.report import render_report
from tests.report.pages import HASH, MANIFEST, Page

EVIL = "<script>alert('x')</script>\"&"


def test_what_a_person_looks_for_is_there() -> None:
    page = Page(render_report(MANIFEST))
    assert page.open == []
    for part in (
        *("some_net", "A network.", "Not proven to the end: model.engine was built and checked, but not run here."),
        *("123 to 33", "359 of 360", "98.89 %", "99.17 %", "357 of 360", "2.0e-07", "7.8e-04"),
        *("pkg.nets:build(num_classes=10)", "1,234,567", "batchx1x8x8", HASH, HASH[::-1]),
        *("stages.0.fusion", "iaff", "one global branch for both", "sigmoid_9", "the global branch is not pooled"),
        *("fold_batchnorm", "42", "12 ms", "3.25e-06", "131.2", "permuted rows", "passed"),
        *("39 of 40 convolutions and products", "8x1x8x8", "the_mean", "0.0125", "61.5", "not run: there is no GPU", "12.0+"),
        *("360 samples of evaluation data and 16 samples drawn from a seed", "1e-06 + 0.0001", "3.11.7"),
    ):
        assert part in page.text, part


def test_it_needs_nothing_outside_itself() -> None:
    page = render_report(MANIFEST)
    parsed = Page(page)
    assert parsed.links == []
    assert {"script", "link", "img", "iframe"} & set(parsed.tags) == set()
    assert not re.search(r"url\(|@import|https?:", page)


def with_text(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {(text if key in ("Conv", "num_classes") else key): with_text(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [with_text(inner, text) for inner in value]
    return text if isinstance(value, str) else value


def test_every_text_is_escaped() -> None:
    page = render_report(with_text(copy.deepcopy(MANIFEST), EVIL))
    assert "<script" not in page
    assert html.escape(EVIL) in page
    assert Page(page).open == []


def test_failure_and_its_detail_are_in_words() -> None:
    manifest = copy.deepcopy(MANIFEST)
    manifest["validation"]["passed"] = False
    manifest["validation"]["outputs"][0] |= {"passed": False, "detail": "output 'logits' is off at [0, 3]", "max_abs": None}
    page = Page(render_report(manifest))
    assert "FAILED: model.onnx computes something else than PyTorch." in page.text
    assert "off at [0, 3]" in page.text


def test_what_was_not_measured_is_said_to_be_so() -> None:
    manifest = copy.deepcopy(MANIFEST)
    manifest |= {"evaluation": None, "fusions": [], "rejected": [], "engine": {"built": False, "why": "no backend is here"}}
    manifest["network"]["weights"] = None
    page = Page(render_report(manifest))
    for part in (
        *("no evaluation data", "No engine: no backend is here."),
        "no attentional feature fusion was recognised",
        "code made them",
        "reduced exactly",
    ):
        assert part in page.text
    manifest["evaluation"] = MANIFEST["evaluation"] | {
        "correct": {"pytorch": None, "file": None},
        "accuracy": {"pytorch": None, "file": None, "recorded": None},
    }
    assert "accuracy was not measured" in Page(render_report(manifest)).text
