"""How fast is the fused operator on this GPU, next to eager PyTorch, torch.compile, and the memory floor?

    python benchmarks/fusion_gpu.py [--dtypes float16 ...] [--layouts ...] [--r 16 ...] [--no-networks] [--write]

For each shape one AFF in eval mode with random BatchNorm statistics, three ways: as it is, under
torch.compile with max-autotune, and as aff-deploy's kernels (``fuse_module``). All three are replayed from
CUDA graphs, so that launches cost all the same. T is the bytes of x. 3T (x and y read once, the output
written) is what no kernel can beat, 5T what none can that does not keep an image on chip; both at the
copy rate measured here, or less where everything fits the L2 cache: then a share above 1 is no mistake. Error
is the largest difference from the same module in float64, over its largest output.

Then whole networks, channels last, under the same torch.compile as they are and fused.
``--write`` puts table, JSON and picture into docs/benchmarks, anew after every row: a run that is cut off goes on
where it ended, on the same machine with the same versions. Without a GPU one sentence and exit code 4.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aff_deploy.artifact import versions
from aff_deploy.nets import AFF, aff_resnet50, iaff_resnet50
from aff_deploy.ops import fuse_module
from tests.support import randomise_batchnorm

DOCS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
SHAPES = (
    *((32, 256, 56, 56), (32, 512, 28, 28), (1, 1024, 14, 14), (32, 1024, 14, 14)),
    *((1, 2048, 7, 7), (32, 2048, 7, 7), (256, 64, 32, 32)),
)
DTYPES = ("float16", "bfloat16", "float32")
LAYOUTS = ("linear", "channels_last")
NETWORKS = {"aff_resnet50": aff_resnet50, "iaff_resnet50": iaff_resnet50}
BATCHES = (1, 32)
WAYS = ("eager", "compiled", "ours")

Run = Callable[[], Tensor]


def captured(function: Run) -> Run:
    """`function` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = function()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def microseconds(function: Run, *, rounds: int = 20) -> float:
    """Median over rounds of the mean time of as many calls as take some milliseconds."""

    def timed(calls: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(calls):
            function()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e3 / calls

    timed(10)
    calls = max(10, min(1000, int(5000 / timed(10))))
    return statistics.median(timed(calls) for _ in range(rounds))


def copy_rate() -> float:
    """Bytes a second that this GPU reads and writes while it copies a large tensor."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / microseconds(lambda: target.copy_(source)) * 1e6


def prepared(net: nn.Module, dtype: torch.dtype, layout: str) -> nn.Module:
    randomise_batchnorm(net, 0)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    return net.eval().to(device="cuda", dtype=dtype, memory_format=memory_format)  # type: ignore[call-overload,no-any-return]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).abs().max() / expected.abs().max())


@torch.inference_mode()
def fusion_row(shape: tuple[int, ...], dtype: str, layout: str, r: int, rate: float) -> dict[str, Any]:
    """One line of the first table."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    memory_format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    plain = prepared(AFF(shape[1], r=r), kind, layout)
    x, y = (torch.randn(shape, device="cuda", dtype=kind).to(memory_format=memory_format) for _ in range(2))
    expected = copy.deepcopy(plain).double()(x.double(), y.double())
    fused = fuse_module(copy.deepcopy(plain))
    torch._dynamo.reset()
    compiled = torch.compile(plain, mode="max-autotune-no-cudagraphs", fullgraph=True)
    ways: dict[str, nn.Module] = dict(zip(WAYS, (plain, compiled, fused), strict=True))
    row: dict[str, Any] = {"shape": list(shape), "dtype": dtype, "layout": layout, "r": r}
    for name, net in ways.items():
        run = captured(lambda net=net: net(x, y))
        row[f"{name}_us"] = microseconds(run)
        row[f"{name}_error"] = relative_error(run(), expected)
    return {**row, **floors(x.numel() * x.element_size(), row["ours_us"], rate)}


def floors(size: int, ours: float, rate: float) -> dict[str, float]:
    """The floors of a fusion of tensors of `size` bytes, in microseconds, and our share of them."""
    three, five = (times * size / rate * 1e6 for times in (3, 5))
    return {
        "bytes_5T": 5.0 * size,
        "floor_3T_us": three,
        "floor_5T_us": five,
        "share_3T": three / ours,
        "share_5T": five / ours,
    }


@torch.inference_mode()
def network_row(name: str, batch: int, dtype: str) -> dict[str, Any]:
    """One line of the second table."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    plain = prepared(NETWORKS[name](), kind, "channels_last")
    x = torch.randn(batch, 3, 224, 224, device="cuda", dtype=kind).to(memory_format=torch.channels_last)
    expected = copy.deepcopy(plain).double()(x.double())
    row: dict[str, Any] = {"network": name, "batch": batch, "dtype": dtype}
    fused = fuse_module(copy.deepcopy(plain))
    for way, net in (("compiled", plain), ("ours", fused)):
        torch._dynamo.reset()
        compiled = torch.compile(net, mode="max-autotune-no-cudagraphs", fullgraph=True)
        run = captured(lambda compiled=compiled: compiled(x))
        row[f"{way}_us"] = microseconds(run)
        row[f"{way}_error"] = relative_error(run(), expected)
    return {**row, "speedup": row["compiled_us"] / row["ours_us"]}


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def table(document: dict[str, Any]) -> str:
    """The page of a run."""
    lines = [
        "# The fused operator on a GPU",
        "",
        f"{document['machine']}, copying {document['copy_rate'] / 1e12:.2f} TB/s. Times in microseconds, from CUDA graphs.",
        "T is the bytes of x; a share is the floor's time over ours. Error is against float64.",
        "",
        "| N C H W | type | layout | r | eager | torch.compile | ours | speedup | 5T MB | of 3T | of 5T | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["fusions"]:
        lines.append(
            f"| {' '.join(map(str, row['shape']))} | {row['dtype']} | {row['layout']} | {row['r']} | {row['eager_us']:.1f} "
            f"| {row['compiled_us']:.1f} | {row['ours_us']:.1f} | {row['compiled_us'] / row['ours_us']:.2f} "
            f"| {row['bytes_5T'] / 1e6:.1f} | {row['share_3T']:.2f} | {row['share_5T']:.2f} | {row['ours_error']:.1e} |"
        )
    speedups = [row["compiled_us"] / row["ours_us"] for row in document["fusions"]]
    lines += ["", f"Geometric mean of the speedup over torch.compile: {geometric_mean(speedups):.2f}.", ""]
    lines += ["![times](fusion_gpu.svg)", ""]
    if document["networks"]:
        lines += ["| network | batch | type | torch.compile | ours | speedup | error |", "|---|---|---|---|---|---|---|"]
    for row in document["networks"]:
        lines.append(
            f"| {row['network']} | {row['batch']} | {row['dtype']} | {row['compiled_us']:.0f} | {row['ours_us']:.0f} "
            f"| {row['speedup']:.3f} | {row['ours_error']:.1e} |"
        )
    lines += ["", "Versions: " + ", ".join(f"{name} {version}" for name, version in document["versions"].items()) + "."]
    return "\n".join([*lines, "", f"Made by `{document['command']}`.", ""])


def picture(rows: Sequence[dict[str, Any]]) -> str:
    """Bars of each row's times in units of its 5T floor, as SVG."""
    colours = dict(zip(WAYS, ("#bbbbbb", "#5b8db8", "#c8553d"), strict=True))
    ratios = [[row[f"{way}_us"] / row["floor_5T_us"] for way in WAYS] for row in rows]
    scale = 520 / max(max(values) for values in ratios)
    height = 30 + 44 * len(rows)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="880" height="{height}" font-family="sans-serif" font-size="11">']
    parts += [f'<text x="{250 + 110 * i}" y="16" fill="{colours[way]}">{way}</text>' for i, way in enumerate(WAYS)]
    for i, (row, values) in enumerate(zip(rows, ratios, strict=True)):
        top = 30 + 44 * i
        label = f"{'x'.join(map(str, row['shape']))} {row['dtype']} {row['layout']} r={row['r']}"
        parts.append(f'<text x="4" y="{top + 22}">{label}</text>')
        for j, (way, value) in enumerate(zip(WAYS, values, strict=True)):
            y = top + 12 * j
            parts.append(f'<rect x="250" y="{y}" width="{value * scale:.1f}" height="10" fill="{colours[way]}"/>')
            parts.append(f'<text x="{256 + value * scale:.1f}" y="{y + 9}">{value:.2f} x 5T</text>')
    return "\n".join([*parts, "</svg>", ""])


def has(rows: Sequence[dict[str, Any]], **key: object) -> bool:
    """Whether one of the rows is that of `key`."""
    return any(all(row[name] == value for name, value in key.items()) for row in rows)


def begun(document: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """`document` with the rows and the copy rate that an earlier run on the same machine with the same versions left."""
    rows: dict[str, Any] = {"fusions": [], "networks": []}
    if folder is not None and (folder / "fusion_gpu.json").exists():
        kept = json.loads((folder / "fusion_gpu.json").read_text(encoding="utf-8"))
        if all(kept.get(name) == document[name] for name in ("machine", "versions")):
            rows = {name: kept[name] for name in ("fusions", "networks", "copy_rate")}
    return {**document, **rows}


def keep(document: dict[str, Any], folder: Path | None) -> None:
    """Write what there is so far, and say that there is more."""
    print(f"{len(document['fusions'])} fusions, {len(document['networks'])} networks", file=sys.stderr, flush=True)
    if folder is not None:
        (folder / "fusion_gpu.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (folder / "fusion_gpu.md").write_text(table(document), encoding="utf-8")
        (folder / "fusion_gpu.svg").write_text(picture(document["fusions"]), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="the fused operator against PyTorch on this machine's GPU")
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--layouts", nargs="+", default=LAYOUTS, choices=LAYOUTS)
    parser.add_argument("--r", nargs="+", type=int, default=(16,), help="reductions; the paper's ImageNet networks have 16")
    parser.add_argument("--no-networks", action="store_true", help="leave out whole networks")
    parser.add_argument("--write", action="store_true", help="put the results into docs/benchmarks")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("error: this benchmark needs an NVIDIA GPU and a PyTorch built for CUDA", file=sys.stderr)
        return 4
    # TF32 would make fp32 another computation than ours.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    document: dict[str, Any] = {
        "machine": torch.cuda.get_device_name(),
        "versions": {**versions(), "cuda": str(torch.version.cuda)},
        "command": " ".join(["python", "benchmarks/fusion_gpu.py", *sys.argv[1:]]),
    }
    document = begun(document, DOCS if given.write else None)
    document.setdefault("copy_rate", copy_rate())
    for key in product(given.r, given.dtypes, given.layouts, SHAPES):
        r, dtype, layout, shape = key
        if not has(document["fusions"], r=r, dtype=dtype, layout=layout, shape=list(shape)):
            document["fusions"].append(fusion_row(shape, dtype, layout, r, document["copy_rate"]))
            keep(document, DOCS if given.write else None)
    for name, batch, dtype in () if given.no_networks else product(NETWORKS, BATCHES, given.dtypes):
        if not has(document["networks"], network=name, batch=batch, dtype=dtype):
            document["networks"].append(network_row(name, batch, dtype))
            keep(document, DOCS if given.write else None)
    print(table(document))
    return 0


if __name__ == "__main__":
    sys.exit(main())
