"""PTX through the assembler that Triton carries: what a kernel takes of a multiprocessor."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from aff_deploy.ops.compile import KernelImage


def assembled(image: KernelImage, folder: Path) -> tuple[int, int, int]:
    """Registers of a thread, bytes spilt, and bytes of static shared memory, as ptxas reports them."""
    import triton

    path = folder / "kernel.ptx"
    path.write_text(image.ptx, encoding="ascii")
    target = re.search(r"^\.target (\w+)", image.ptx, re.MULTILINE)
    assert target is not None
    tool = "ptxas-blackwell" if image.capability >= 100 else "ptxas"
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    command = [ptxas, "-v", f"-arch={target[1]}", path, "-o", folder / "kernel.cubin"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    registers = re.search(r"Used (\d+) registers", done.stderr)
    stores, loads = re.search(r"(\d+) bytes spill stores", done.stderr), re.search(r"(\d+) bytes spill loads", done.stderr)
    assert registers is not None
    assert stores is not None
    assert loads is not None
    static = re.search(r"(\d+) bytes smem", done.stderr)
    return int(registers[1]), int(stores[1]) + int(loads[1]), int(static[1]) if static else 0
