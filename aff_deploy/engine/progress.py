"""A builder's phases as lines for a person, at a pace that can be read."""

from __future__ import annotations

import time
from collections.abc import Callable

INTERVAL = 0.5
"""Seconds between two lines."""


class Phases:
    """Keeps the stack of phases that a builder reports and tells the innermost, at most every `INTERVAL`.

    Args:
        tell: called with ``Building engine: Tactic selection 3/10`` and the like; may be None.
        clock: seconds, for tests.
    """

    def __init__(self, tell: Callable[[str], None] | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._stack: list[tuple[str, int]] = []
        self._told = clock()

    def start(self, name: str, steps: int) -> None:
        self._stack.append((name, steps))
        self._report(0)

    def step(self, name: str, step: int) -> None:
        if self._stack and self._stack[-1][0] == name:
            self._report(step + 1)

    def finish(self, name: str) -> None:
        self._stack = [entry for entry in self._stack if entry[0] != name]

    def _report(self, step: int) -> None:
        now = self._clock()
        if self._tell is None or now - self._told < INTERVAL:
            return
        self._told = now
        outer, (name, steps) = self._stack[0][0], self._stack[-1]
        inner = f": {name}" if len(self._stack) > 1 else ""
        self._tell(f"{outer}{inner} {step}/{steps}" if steps else f"{outer}{inner}")
