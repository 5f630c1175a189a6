"""``report.html``: one self-contained page, from the manifest of a deployment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aff_deploy.report import sections
from aff_deploy.report.html import Html, escape, join, tag
from aff_deploy.report.style import CSS

__all__ = ["render_report"]

ORDER = (
    sections.header,
    sections.parity,
    sections.accuracy,
    sections.engine,
    sections.fusions,
    sections.refusals,
    sections.operators,
    sections.passes,
    sections.origin,
    sections.provenance,
)


def render_report(manifest: Mapping[str, Any]) -> str:
    """The page as HTML that refers to nothing outside itself.

    Args:
        manifest: the content of ``manifest.json``; every text in it is escaped.
    """
    head = join(
        [
            Html('<meta charset="utf-8">'),
            Html('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            tag("title", f"{manifest['name']} - deployment report"),
            tag("style", Html(CSS)),
        ]
    )
    footer = tag("footer", f"Written by aff-deploy {manifest['versions'].get('aff-deploy', '')}.")
    body = tag("main", *(part(manifest) for part in ORDER), footer)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{escape(head)}\n</head>\n<body>\n{body}\n</body>\n</html>\n'
