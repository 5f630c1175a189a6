"""Files in and out: inputs opened with bounds, outputs that appear whole or not at all, and the manifests beside them.

What one command reads and what it writes is kept apart by `claims`.
"""

from __future__ import annotations

from aff_deploy.artifact.claims import claim_file, claim_folder, kept_apart, note_read
from aff_deploy.artifact.interruption import abandon_stages, scratch_folder
from aff_deploy.artifact.libraries import cache_folder, confine_libraries
from aff_deploy.artifact.manifest import (
    FOLDER_MANIFEST,
    MANIFEST_FORMAT,
    Artifact,
    manifest_path,
    read_manifest,
    sha256,
    versions,
    write_folder_manifest,
    write_manifest,
)
from aff_deploy.artifact.reading import (
    MAX_JSON,
    check_input,
    is_input,
    open_archive,
    open_input,
    read_input,
    read_json,
    reason_of,
)
from aff_deploy.artifact.staging import check_writable, staged_file, staged_folder

__all__ = [
    "FOLDER_MANIFEST",
    "MANIFEST_FORMAT",
    "MAX_JSON",
    "Artifact",
    "abandon_stages",
    "cache_folder",
    "check_input",
    "check_writable",
    "claim_file",
    "claim_folder",
    "confine_libraries",
    "is_input",
    "kept_apart",
    "manifest_path",
    "note_read",
    "open_archive",
    "open_input",
    "read_input",
    "read_json",
    "read_manifest",
    "reason_of",
    "scratch_folder",
    "sha256",
    "staged_file",
    "staged_folder",
    "versions",
    "write_folder_manifest",
    "write_manifest",
]
