"""Writing HTML in which every text is escaped: names come from files that nobody vouches for."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that is already HTML."""

    __slots__ = ()


def escape(value: object) -> Html:
    """`value` as HTML: as it is if it is `Html`, else escaped text."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def tag(name: str, *children: object, **attributes: str) -> Html:
    """An element; attribute ``class_`` stands for ``class``."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{''.join(map(escape, children))}</{name}>")


def join(parts: Iterable[object], separator: str = "\n") -> Html:
    """Parts one after the other."""
    return Html(separator.join(map(escape, parts)))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[int] = ()) -> Html:
    """A table that scrolls sideways on a narrow screen; columns in `numbers` are set flush right."""

    def style(column: int) -> dict[str, str]:
        return {"class_": "number"} if column in numbers else {}

    head = tag("tr", *(tag("th", text, scope="col", **style(i)) for i, text in enumerate(heads)))
    body = (tag("tr", *(tag("td", cell, **style(i)) for i, cell in enumerate(row))) for row in rows)
    return tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="scroll", tabindex="0")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """A list of terms and what they are."""
    return tag("dl", *(tag("div", tag("dt", term), tag("dd", value)) for term, value in pairs))


def verdict(passed: bool) -> Html:
    """Pass or fail in words and in colour."""
    return tag("span", "passed" if passed else "FAILED", class_="good" if passed else "bad")
