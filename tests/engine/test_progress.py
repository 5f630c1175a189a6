"""A builder's phases, at a pace that can be read."""

from __future__ import annotations

from aff_deploy.engine.progress import INTERVAL, Phases


def test_the_innermost_phase_is_told_at_most_once_an_interval() -> None:
    now = 0.0
    told: list[str] = []
    phases = Phases(told.append, clock=lambda: now)
    phases.start("Building engine", 6)
    assert told == []  # a short build says nothing
    now = INTERVAL
    phases.start("Tactic selection", 10)
    phases.step("Tactic selection", 4)
    now = 2 * INTERVAL
    phases.step("Tactic selection", 6)
    phases.finish("Tactic selection")
    now = 3 * INTERVAL
    phases.step("Building engine", 2)
    assert told == ["Building engine: Tactic selection 0/10", "Building engine: Tactic selection 7/10", "Building engine 3/6"]


def test_steps_of_an_outer_phase_do_not_hide_the_inner_one() -> None:
    told: list[str] = []
    ticks = iter(range(100))
    phases = Phases(told.append, clock=lambda: float(next(ticks)))
    phases.start("outer", 2)
    phases.start("inner", 3)
    phases.step("outer", 0)
    assert told[-1] == "outer: inner 0/3"


def test_nobody_needs_to_listen() -> None:
    phases = Phases(None)
    phases.start("Building engine", 6)
    phases.step("Building engine", 0)
    phases.finish("Building engine")
