"""The parts of the report, each from the manifest of a deployment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from aff_deploy.report.html import Html, facts, join, table, tag, verdict
from aff_deploy.report.verdicts import FAILED, NOT_RUN, PASSED, headline, judge, share
from aff_deploy.spec import write_shape

SITE_COLUMNS = ("name", "kind", "channels", "inter_channels", "scale", "activation", "context")


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def number(value: float | None, form: str = ".3g") -> str:
    return "-" if value is None else format(value, form)


def code(value: object) -> Html:
    return tag("code", value)


def section(title: str, *parts: object) -> Html:
    return tag("section", tag("h2", title), *parts)


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


COLOURS = {PASSED: "good", NOT_RUN: "open", FAILED: "bad"}


def header(manifest: Mapping[str, Any]) -> Html:
    """Name, verdict and the numbers that one looks for first."""
    evaluation, nodes, verdicts = manifest["evaluation"], manifest["nodes"], judge(manifest)
    state, words = headline(verdicts)
    cards = [(len(manifest["fusions"]), "attention sites fused"), (f"{nodes['before']} to {nodes['after']}", "operators")]
    cards += [
        (share(verdict.difference), f"of the output's scale: largest difference from PyTorch of {verdict.file}")
        for verdict in verdicts
        if verdict.difference is not None
    ]
    if evaluation is not None:
        cards.append((f"{evaluation['same_answers']} of {evaluation['samples']}", "same answers of the ONNX file as PyTorch"))
        if evaluation["accuracy"]["file"] is not None:
            cards.append((percent(evaluation["accuracy"]["file"]), "accuracy of the ONNX file"))
    rows: list[tuple[object, ...]] = [
        (
            code(v.file),
            tag("span", v.state, class_=COLOURS[v.state]),
            f"{v.words}." + (f" Not run: {v.why_not_run}." if v.why_not_run else ""),
        )
        for v in verdicts
    ]
    if not manifest["engine"]["built"]:
        rows.append(("engine", tag("span", "none", class_="soft"), f"{manifest['engine']['why']}."))
    return tag(
        "header",
        tag("h1", manifest["name"]),
        tag("p", manifest["description"] or "Deployment report", class_="soft"),
        tag("div", words, class_=f"verdict {COLOURS[state]}"),
        table(["File", "Verdict", ""], rows),
        tag("div", *(tag("div", tag("b", value), tag("span", label), class_="card") for value, label in cards), class_="cards"),
    )


def origin(manifest: Mapping[str, Any]) -> Html:
    """What went in."""
    network = manifest["network"]
    call = ", ".join(f"{key}={value!r}" for key, value in network["arguments"].items())
    weights: object = "none given: as the network's code made them (a bundled network's are not trained)"
    if network["weights"] is not None:
        weights = join([code(network["weights"]["file"]), ", sha256 ", code(network["weights"]["sha256"])], "")
    pairs: list[tuple[str, object]] = [
        ("Network", code(f"{network['reference']}({call})")),
        ("Parameters", f"{network['parameters']:,}"),
        ("Weights", weights),
    ]
    for kind in ("inputs", "outputs"):
        values = (code(f"{v['name']} {write_shape(v['shape'])} {v['dtype']}") for v in manifest[kind])
        pairs.append((kind.capitalize(), join(values, "<br>")))
    export = network["export"]
    pairs.append(("Export", f"{export['exporter']} exporter, opset {export['opset']}"))
    return section("What went in", facts(pairs))


def fusions(manifest: Mapping[str, Any]) -> Html:
    """What was fused."""
    sites = manifest["fusions"]
    if not sites:
        return section("What was fused", tag("p", "Nothing: no attentional feature fusion was recognised in this network."))
    kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(site["kind"] for site in sites).items())
    rows = [
        [
            *("-" if site.get(key) is None else site[key] for key in SITE_COLUMNS),
            " + ".join(site.get("branches") or ()) + (", one global branch for both" if site.get("share_global") else ""),
        ]
        for site in sites
    ]
    return section(
        "What was fused",
        tag(
            "p",
            f"{plural(len(sites), 'site')}: {kinds}. In the file each is one call (an iAFF two) of a function such as ",
            code("AttentionalFusion"),
            ", whose body is standard ONNX, for runtimes that read local functions: ONNX Runtime does, OpenVINO does not.",
        ),
        table(["Site", "Kind", "Channels", "Inner", "Scale", "Activation", "Attends to", "Branches"], rows, numbers=(2, 3, 4)),
    )


def refusals(manifest: Mapping[str, Any]) -> Html:
    """What was refused, and why."""
    sites = manifest["rejected"]
    if not sites:
        return section("What was refused", tag("p", "Nothing: every candidate was reduced exactly to the fused operator."))
    note = tag("p", "These look like attention but cannot be reduced exactly, so they were left as they are.")
    return section("What was refused", note, table(["Site", "Reason"], [(code(s["name"]), s["reason"]) for s in sites]))


def operators(manifest: Mapping[str, Any]) -> Html:
    """Operators before and after, as numbers and bars."""
    before, after = manifest["ops"]["before"], manifest["ops"]["after"]
    names = sorted({*before, *after}, key=lambda op: (-max(before.get(op, 0), after.get(op, 0)), op))
    most = max([1, *before.values(), *after.values()])

    def bars(op: str) -> Html:
        counts = ((before.get(op, 0), "bar"), (after.get(op, 0), "bar after"))
        drawn = (tag("span", class_=kind, style=f"width: {100 * n / most:.1f}%") for n, kind in counts if n)
        return tag("span", *drawn, class_="bars")

    rows: list[tuple[object, ...]] = [(code(op), before.get(op, 0), after.get(op, 0), bars(op)) for op in names]
    rows.append((tag("b", "All"), manifest["nodes"]["before"], manifest["nodes"]["after"], ""))
    words = "Counted in the exported file (pale bar) and in the optimised one (strong bar, where a fused call counts once)."
    note = tag("p", words)
    return section("Operators", note, table(["Operator", "Before", "After", ""], rows, numbers=(1, 2)))


def passes(manifest: Mapping[str, Any]) -> Html:
    """Which passes ran, and what they did."""
    rows = [(p["name"], p["rewrites"], p["nodes"], f"{1000 * p['seconds']:.0f} ms") for p in manifest["passes"]]
    return section("Passes", table(["Pass", "Rewrites", "Nodes after", "Time"], rows, numbers=(1, 2, 3)))


def parity(manifest: Mapping[str, Any]) -> Html:
    """Each output against eager PyTorch."""
    validation = manifest["validation"]
    tolerance = validation["tolerance"]
    rows = [
        (
            code(o["name"]),
            number(o["max_abs"]),
            number(o["scale"]),
            number(o["max_rel"]),
            number(o["cosine"], ".8f"),
            number(o["snr_db"], ".1f"),
            percent(o["argmax_agreement"]),
            verdict(o["passed"]),
        )
        for o in validation["outputs"]
    ]
    heads = ["Output", "Max abs", "Scale", "Max rel", "Cosine", "SNR, dB", "Same argmax", "Verdict"]
    parts: list[object] = [table(heads, rows, numbers=range(1, 7))]
    parts += [tag("p", o["detail"], class_="bad") for o in validation["outputs"] if o["detail"] and not o["passed"]]
    if validation["checks"]:
        skipped = tag("span", "not checked", class_="soft")
        checks = [(c["name"], skipped if c.get("skipped") else verdict(c["passed"]), c["detail"]) for c in validation["checks"]]
        parts.append(table(["Property", "Verdict", ""], checks))
    kinds = {"evaluation": "samples of evaluation data", "seeded": "samples drawn from a seed"}
    sources = " and ".join(f"{s['samples']} {kinds.get(s['kind'], s['kind'])}" for s in validation["sources"])
    parts.append(
        tag(
            "p",
            f"Against eager PyTorch in eval mode, on {sources}. An output passes when its largest difference is at most "
            f"{tolerance['atol']:g} + {tolerance['rtol']:g} of the scale and its cosine similarity at least "
            f"{tolerance['min_cosine']:g}; the scale is the largest magnitude in PyTorch's output.",
            class_="soft",
        )
    )
    return section("Parity with PyTorch", *parts)


def accuracy(manifest: Mapping[str, Any]) -> Html:
    """Answers on the evaluation data."""
    found = manifest["evaluation"]
    if found is None:
        return section("Accuracy", tag("p", "Not measured: the recipe names no evaluation data."))
    answers = tag("p", f"The file gives the same answer as PyTorch on {found['same_answers']} of {found['samples']} samples.")
    right, rate = found["correct"], found["accuracy"]
    if right["file"] is None:
        return section("Accuracy", answers, tag("p", "The evaluation data has no labels, so accuracy was not measured."))
    of = found["samples"]
    rows = [
        ("PyTorch", f"{right['pytorch']} of {of}", percent(rate["pytorch"])),
        ("Optimised file, ONNX Runtime", f"{right['file']} of {of}", percent(rate["file"])),
    ]
    rows += [] if rate["recorded"] is None else [("Recorded in the recipe", "", percent(rate["recorded"]))]
    return section("Accuracy", answers, table(["", "Right", "Accuracy"], rows, numbers=(1, 2)))


def engine(manifest: Mapping[str, Any]) -> Html:
    """The engine: what was asked for, what was read back from it, and what was compared."""
    found = manifest["engine"]
    if not found["built"]:
        return section("Engine", tag("p", f"No engine: {found['why']}."))
    proof = found["precision"]["proof"]
    profiles = [
        f"{name} {', '.join('x'.join(map(str, profile[bound][name])) for bound in ('min', 'opt', 'max'))}"
        for profile in found["profiles"]
        for name in profile["opt"]
    ]
    pairs: list[tuple[str, object]] = [
        ("File", join([code(found["file"]), f", {found['bytes']:,} bytes, weights {found['weights_bytes']:,} bytes"], "")),
        ("Built by", f"{found['backend']} {found['library_version']}"),
        ("GPUs", f"compute capability {', '.join(found['compute_capabilities'])}"),
        (
            "Precision",
            f"{proof['precision']}: {proof['in_precision']} of {proof['nodes']} convolutions and products, "
            f"read from {proof['read_from']}",
        ),
        ("Ranges observed on", found["typed"]["observed"] or "nothing: fp32 needs none"),
        ("Shapes (min, opt, max)", join(map(code, profiles), "<br>") if profiles else "static"),
    ]
    rows = [
        (
            f"{check['what']} on {check['on']}",
            code(o["name"]),
            number(o["max_abs"]),
            number(o["scale"]),
            number(o["snr_db"], ".1f"),
        )
        for check in found["checks"]
        for o in check["outputs"]
    ]
    parts: list[object] = [
        facts(pairs),
        table(["Compared with PyTorch", "Output", "Max abs", "Scale", "SNR, dB"], rows, numbers=(2, 3, 4)),
    ]
    kept = found["typed"]["kept_wide"]
    if kept:
        parts.append(table(["Kept in fp32", "Why"], [(code(k["name"]), k["reason"]) for k in kept]))
    if found["not_run"]:
        parts.append(tag("p", f"The engine itself was not run: {found['not_run']}.", class_="soft"))
    return section("Engine", *parts)


def provenance(manifest: Mapping[str, Any]) -> Html:
    """Hashes, versions, times."""
    model = manifest["model"]
    data = [s for s in manifest["validation"]["sources"] if s["kind"] == "evaluation"]
    pairs: list[tuple[str, object]] = [
        ("Made", f"{manifest['created']} on {manifest['platform']}"),
        ("Model file", join([code(model["file"]), f", {model['bytes']:,} bytes"], "")),
        ("sha256", code(model["sha256"])),
        *((f"sha256 of {source['file']}", code(source["sha256"])) for source in data),
        ("Stages", ", ".join(f"{name} {seconds:.2f} s" for name, seconds in manifest["seconds"].items())),
        ("Versions", ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())),
    ]
    return section("Provenance", facts(pairs))
