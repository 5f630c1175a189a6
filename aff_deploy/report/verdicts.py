"""What was proven of each file of a deployment, and what not: the headline is the worst of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PASSED, NOT_RUN, FAILED = "passed", "not run", "FAILED"
"""From the best to the worst."""
LARGE = 1e-3
"""A difference, relative to the output's scale, that is told in percent."""


@dataclass(frozen=True)
class Verdict:
    """Of one file.

    Attributes:
        file: its name.
        state: `PASSED`, `NOT_RUN` or `FAILED`.
        difference: the largest from PyTorch, relative to the output's scale; None where it cannot be told.
        words: what was compared with what.
        why_not_run: empty unless `NOT_RUN`.
    """

    file: str
    state: str
    difference: float | None
    words: str
    why_not_run: str = ""


def judge(manifest: Mapping[str, Any]) -> tuple[Verdict, ...]:
    """One verdict a file that computes something, from the manifest of a deployment."""
    found = [_judge_model(manifest["model"]["file"], manifest["validation"])]
    if manifest["engine"]["built"]:
        found.append(_judge_engine(manifest["engine"]))
    return tuple(found)


def headline(verdicts: Sequence[Verdict]) -> tuple[str, str]:
    """The worst state, and a sentence that holds for every file."""
    state = max((verdict.state for verdict in verdicts), key=(PASSED, NOT_RUN, FAILED).index)
    files = " and ".join(verdict.file for verdict in verdicts if verdict.state == state)
    if state == FAILED:
        return state, f"FAILED: {files} computes something else than PyTorch."
    far = [verdict for verdict in verdicts if verdict.difference is not None]
    worst = max(far, key=lambda verdict: verdict.difference or 0.0, default=None)
    distance = f" Largest difference: {share(worst.difference)} of the output's scale ({worst.file})." if worst else ""
    if state == NOT_RUN:
        return state, f"Not proven to the end: {files} was built and checked, but not run here.{distance}"
    return state, f"Passed: {files} ran here: what PyTorch computes, within the tolerance.{distance}"


def share(difference: float | None) -> str:
    """A difference relative to the output's scale, in words."""
    if difference is None:
        return "-"
    return f"{100 * difference:.2g} %" if difference >= LARGE else f"{difference:.1e}"


def _judge_model(file: str, validation: Mapping[str, Any]) -> Verdict:
    difference = _difference(validation["outputs"])
    words = f"within {share(difference)} of PyTorch, relative to the output's scale, over {validation['samples']} samples"
    return Verdict(file, PASSED if validation["passed"] else FAILED, difference, words)


def _judge_engine(engine: Mapping[str, Any]) -> Verdict:
    check = engine["checks"][-1]
    difference = _difference(check["outputs"])
    agreed = [output["argmax_agreement"] for output in check["outputs"] if output.get("argmax_agreement") is not None]
    answers = f", {100 * min(agreed):.2f} % the same answers" if agreed else ""
    words = (
        f"{engine['precision']['proven']} proven; {check['what']} differs from PyTorch by {share(difference)} of the output's "
        f"scale on {check['data']}{answers}"
    )
    if not all(each.get("passed", True) for each in engine["checks"]):
        return Verdict(engine["file"], FAILED, difference, words)
    state = NOT_RUN if engine["not_run"] else PASSED
    return Verdict(engine["file"], state, difference, words, engine["not_run"])


def _difference(outputs: Sequence[Mapping[str, Any]]) -> float | None:
    ratios = [o["max_abs"] / o["scale"] for o in outputs if o["max_abs"] is not None and o["scale"]]
    return max(ratios, default=None)
