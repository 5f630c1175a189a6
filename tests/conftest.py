"""What every test shares: one thread each, so that two workers on two cores do not stand in each other's way."""

from __future__ import annotations

import os

# Before torch and numpy are imported, which read it once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
