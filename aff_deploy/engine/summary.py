"""What a built engine is and what was proven of it, in lines for a person."""

from __future__ import annotations

from aff_deploy.engine import BuiltEngine


def summarise(built: BuiltEngine) -> list[str]:
    """The lines that ``build-engine`` prints."""
    facts, proof = built.artifact.manifest, built.proof
    size = f"{facts['bytes'] / 1e6:.1f} MB, weights {facts['weights_bytes'] / 1e6:.1f} MB"
    wide = len(proof.wide_by_design)
    counted = f"{proof.in_precision} of {proof.nodes} convolutions and products in {proof.precision}"
    counted += f", {wide} wide by design" if wide else ""
    lines = [
        f"{built.artifact.path}: {proof.precision} engine by {facts['backend']} {facts['library_version']}, {size}",
        f"  proof     {counted}, read from {proof.read_from}",
        f"  GPUs      compute capability {', '.join(facts['compute_capabilities'])}",
    ]
    for check in facts["checks"]:
        on = f"{check['what']} on {check['on']}"
        lines.append(f"  parity    {on}, against {check['against']}, {check['samples']} samples ({check['data']}):")
        for output in check["outputs"]:
            lines.append(
                f"            output {output['name']!r} differs by at most {output['max_abs']:.2g} "
                f"at scale {output['scale']:.3g}, {output['snr_db']:.1f} dB"
            )
    lines += [f"  not run   {built.not_run}"] if built.not_run else []
    lines += [f"  kept fp32 {kept.name}: {kept.reason}" for kept in built.typed.kept_wide]
    return lines + [f"  note      {note}" for note in built.typed.notes]
