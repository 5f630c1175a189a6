"""Copy TensorRT's type stubs into a folder, without the lines that are no valid Python.

As released, tensorrt-stubs has a handful of them (a parameter called ``in``), and mypy stops at each.

    python scripts/mend_stubs.py .stubs
"""

from __future__ import annotations

import ast
import shutil
import sys
from importlib import metadata
from pathlib import Path

MOST = 20
"""Lines that may be left out before something else must be wrong."""


def mended(text: str) -> str:
    """`text` with each line that does not parse turned into a comment."""
    lines = text.split("\n")
    for _ in range(MOST):
        try:
            ast.parse("\n".join(lines))
        except SyntaxError as error:
            at = (error.lineno or 1) - 1
            lines[at] = "# " + lines[at]
        else:
            return "\n".join(lines)
    raise SystemExit(f"more than {MOST} lines of the stubs do not parse")


def main() -> None:
    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    for file in metadata.files("tensorrt-stubs") or ():
        if file.suffix == ".pyi":
            path = target / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(mended(file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
