"""A network's weights as a safetensors file that says what it is."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from aff_deploy.artifact import Artifact, sha256, staged_file
from aff_deploy.errors import OutputError
from aff_deploy.nets.weight_files import METADATA, read_checkpoint


def save_weights(
    net: nn.Module, path: Path, *, network: str = "", source: str = "", share_global: bool | None = None
) -> Artifact:
    """Write the state dict of `net` to `path` and read it back; the file appears whole and right, or not at all.

    Its metadata names where the weights came from and may record `share_global`, which `load_weights`
    heeds. The same weights give the same bytes.

    Args:
        net: on any device, in any dtype.
        path: the safetensors file to write; an existing one is replaced.
        network: the name of the network, for the record.
        source: the name of the file that the weights came from, for the record.
        share_global: what the iAFF modules must have with these weights; None where that is not known,
            and then whoever loads the file decides.

    Returns:
        The file; its manifest is the metadata and the SHA-256.

    Raises:
        OutputError: `path` cannot be written, or what is read back is not what was written.
    """
    # Copies: safetensors refuses tensors that share memory, as tied weights do.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in net.state_dict().items()}
    facts = {"network": network, "share_global": share_global, "source": source}
    with staged_file(path) as staged:
        staged.write_bytes(safetensors.torch.save(tensors, {METADATA: json.dumps(facts, sort_keys=True)}))
        again = read_checkpoint(staged)
        same = again.tensors.keys() == tensors.keys() and again.share_global is share_global
        if not same or not all(_same(again.tensors[name], value) for name, value in tensors.items()):
            raise OutputError(f"what was written to {path} is not what was read back", fix="write to another disk")
        return Artifact(path, {**facts, "sha256": sha256(staged)})


def _same(found: Tensor, wanted: Tensor) -> bool:
    """Bit by bit, so that not-a-number equals itself."""
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        return False
    return torch.equal(found.reshape(-1).view(torch.uint8), wanted.reshape(-1).view(torch.uint8))
