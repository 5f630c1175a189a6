"""The README as tests read it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# Numbers, widths, and why an engine cannot be run here.
_VARIES = re.compile(r"[-+]?\d+(?:\.\d+)*(?:e[-+]?\d+)?| +|\((?:no NVIDIA driver is|this PyTorch is)[^)]*\)")


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order; of none for ''."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    return [text for name, text in fenced if name == language]


def commands() -> list[list[str]]:
    """The ``aff-deploy`` command lines of the README, without their comments."""
    text = "\n".join(blocks("console")).replace("\\\n", " ")
    lines = (line.removeprefix("$ ").partition("#")[0].split() for line in text.splitlines())
    return [words[1:] for words in lines if words and words[0] == "aff-deploy"]


def structure(lines: Sequence[str]) -> list[str]:
    """Lines with a mark for whatever differs from run to run and from machine to machine."""
    return [_VARIES.sub("~", line.strip()) for line in lines if line.strip()]
