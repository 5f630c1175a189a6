"""Random graphs: what comes out computes what went in, members fuse, near misses do not."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.passes.random_graphs import judge, random_graph


@settings(max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False))
def test_random_graphs(rng: Random) -> None:
    graph = random_graph(rng)
    verdict = judge(graph)
    assert verdict.error <= 1.0, "the optimised graph computes something else"
    assert verdict.fused == graph.fusions, f"{graph.misses or 'no near miss'}"
