"""The family as people write it, through both exporters: members fuse, relatives do not, all stay what they were."""

from __future__ import annotations

import pytest

from aff_deploy.export import EXPORTERS
from tests.passes.family import ALL_MEMBERS, NEAR_MISSES, optimised

# Those that the two exporters write most differently; the others take the new exporter's two seconds each in the long run.
REPRESENTATIVE = (
    "plain", "lerp", "ones_like", "mean twice", "view and mean", "linear, flatten", "token linear", "GELU",
    "hard sigmoid", "iaff, shared global", "eres2net", "iaff by lerp",
)  # fmt: skip


# It wants the size of a pooling window as a number.
UNEXPORTABLE = {("avg_pool2d of full size", "torchscript")}


def cases(names: object) -> list[object]:
    assert isinstance(names, dict)
    quick = {(name, "torchscript") for name in names} | {(name, "dynamo") for name in REPRESENTATIVE}
    every = [(name, exporter) for name in names for exporter in EXPORTERS if (name, exporter) not in UNEXPORTABLE]
    return [pytest.param(*case, id=" - ".join(case), marks=[] if case in quick else pytest.mark.slow) for case in every]


@pytest.mark.parametrize(("name", "exporter"), cases(ALL_MEMBERS))
def test_members_fuse(name: str, exporter: str) -> None:
    factory, kind = ALL_MEMBERS[name]
    result = optimised(name, factory, exporter)
    assert [fusion.kind for fusion in result.fusions] == [kind], result.rejected


@pytest.mark.parametrize(("name", "exporter"), cases(NEAR_MISSES))
def test_relatives_are_left_alone(name: str, exporter: str) -> None:
    factory, reason = NEAR_MISSES[name]
    result = optimised(name, factory, exporter)
    assert result.fusions == ()
    assert not reason or any(reason in rejection.reason for rejection in result.rejected), result.rejected
