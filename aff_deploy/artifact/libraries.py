"""What other people's libraries would write or send on their own: nothing, but into our cache."""

from __future__ import annotations

import os
from pathlib import Path

TELEMETRY = {
    # A device's number and what was done, in the user's home and from there to a host; through `$TMPDIR/.ses` too.
    "ORT_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
CACHES = {"TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "torchinductor", "CUDA_CACHE_PATH": "cuda"}
"""Variables that say where a library keeps its files, and the folder of ours that they are given."""


def cache_folder(name: str) -> Path:
    """The folder `name` in ``$AFF_DEPLOY_CACHE``, or in ``aff-deploy`` of the user's caches; it need not be there yet."""
    named = os.environ.get("AFF_DEPLOY_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(named) if named else Path(base, "aff-deploy")).expanduser() / name


def confine_libraries() -> None:
    """Turn telemetry off, and let libraries keep their files in our cache, unless the user has named a place.

    Most of them look at this only once, when they are loaded.
    """
    os.environ.update(TELEMETRY)
    for variable, name in CACHES.items():
        os.environ.setdefault(variable, str(cache_folder(name)))
