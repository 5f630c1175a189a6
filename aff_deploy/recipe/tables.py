"""Reading a TOML file whose author makes mistakes: every value checked, every complaint names file and key."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aff_deploy.artifact import is_input, note_read, read_input
from aff_deploy.errors import RecipeError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_FILE_BYTES = 1_000_000
MAX_KEY_PARTS = 64
MAX_DEPTH = 16
SHA256_PATTERN = re.compile(r"[0-9a-f]{64}")


def read_toml(path: Path) -> dict[str, Any]:
    """Parse the TOML file at `path`, of at most 1 MB.

    Raises:
        RecipeError: it is missing, too large, not UTF-8 or not TOML.
    """
    way_out = "give the path of a recipe.toml, or a bundled name"
    content = read_input(path, what="recipe", error=RecipeError, most=MAX_FILE_BYTES, fix=way_out)
    try:
        text = content.decode("utf-8")
        # The parser's work grows with the square of a key's parts.
        if any(part.count(".") > MAX_KEY_PARTS for part in re.split(r"[={},\[\]\n]", text)):
            raise RecipeError(f"{path} has a key of more than {MAX_KEY_PARTS} parts", fix="recipes have keys of two")
        document = tomllib.loads(text)
    except UnicodeDecodeError:
        raise RecipeError(f"{path} is not UTF-8 text", fix="give a TOML file") from None
    except (ValueError, RecursionError) as error:  # ValueError also of a number of more digits than Python reads
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise RecipeError(f"{path} is not valid TOML: {reason}", fix="correct that line") from None
    for key, value in document.items():
        _check_value(path, key, value, MAX_DEPTH)
    return document


def _check_value(path: Path, key: str, value: object, depth: int) -> None:
    """Hold every value to what JSON and 64 bits can hold: what a recipe says is recorded, and compared with numbers.

    Raises:
        RecipeError: naming the key.
    """
    wrong = ""
    if depth < 0:
        wrong = "nested too deeply"
    elif isinstance(value, dict):
        for name, inner in value.items():
            _check_value(path, f"{key}.{name}", inner, depth - 1)
    elif isinstance(value, list):
        for inner in value:
            _check_value(path, key, inner, depth - 1)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        wrong = "an integer beyond 64 bits"
    elif isinstance(value, float) and not math.isfinite(value):
        wrong = f"{value}, not a finite number"
    elif not isinstance(value, (str, int, float)):
        wrong = f"a {type(value).__name__}"
    if wrong:
        raise RecipeError(
            f"{path}: {key!r} is {wrong}", fix="give a string, a number, true, false, or arrays or tables of them"
        )


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that `word` was probably meant to be, or ''."""
    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=0.5)), "")


class Table:
    """A view of one table that hands out checked values.

    Args:
        path: the file, for messages.
        key: dotted path of this table in the file ('' for the top level).
        values: what the file says.
        known: every key that may stand here.

    Raises:
        RecipeError: a key that is not among `known`; each method: a value of the wrong type or out of range.
    """

    def __init__(self, path: Path, key: str, values: Mapping[str, Any], known: Sequence[str]) -> None:
        self.path, self.key, self.values = path, key, values
        for name in values:
            if name not in known:
                guess = nearest(name, known)
                fix = f"did you mean {guess!r}?" if guess else f"known here: {', '.join(known)}"
                raise RecipeError(f"{path}: unknown key {self.name(name)!r}", fix=fix)

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def name(self, key: str) -> str:
        return f"{self.key}.{key}" if self.key else key

    def wrong(self, key: str, wanted: str) -> RecipeError:
        value = repr(self.values[key])
        shown = value if len(value) <= 80 else value[:77] + "..."
        return RecipeError(f"{self.path}: {self.name(key)!r} is {shown}", fix=f"it must be {wanted}")

    def require(self, *keys: str) -> None:
        for key in keys:
            if key not in self.values:
                raise RecipeError(f"{self.path}: {self.name(key)!r} is missing", fix=f"add it to [{self.key or 'top level'}]")

    def text(self, key: str, default: str = "") -> str:
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "a string")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """An array of up to 4096 strings, none of them empty; none where the file has no such key."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or len(value) > 4096 or not all(isinstance(item, str) and item for item in value):
            raise self.wrong(key, "an array of strings")
        return tuple(value)

    def choice(self, key: str, default: str, allowed: Sequence[str]) -> str:
        value = self.text(key, default)
        if value not in allowed:
            raise self.wrong(key, f"one of {', '.join(allowed)}")
        return value

    def integer(self, key: str, default: int, *, low: int, high: int) -> int:
        value = self.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self.wrong(key, f"an integer from {low} to {high}")
        return value

    def boolean(self, key: str, default: bool) -> bool:
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def number(self, key: str, default: float, *, low: float = -math.inf, high: float = math.inf) -> float:
        value = self.values.get(key, default)
        if not _is_number(value) or not low <= value <= high:
            bounds = "" if (low, high) == (-math.inf, math.inf) else f" from {low:g} to {high:g}"
            raise self.wrong(key, f"a finite number{bounds}")
        return float(value)

    def numbers(self, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
        """One number or an array of up to 4096 of them."""
        value = self.values.get(key, default)
        items = [value] if _is_number(value) else value
        if not isinstance(items, (list, tuple)) or not 1 <= len(items) <= 4096 or not all(map(_is_number, items)):
            raise self.wrong(key, "a number or an array of numbers")
        return tuple(float(item) for item in items)

    def sizes(self, key: str) -> tuple[int, ...]:
        """An array of at most eight positive integers."""
        value = self.values[key]
        if not isinstance(value, list) or len(value) > 8 or not all(type(d) is int and 1 <= d < 2**31 for d in value):
            raise self.wrong(key, "an array of positive integers")
        return tuple(value)

    def sha256(self, key: str) -> str:
        value = self.text(key).lower()
        if value and not SHA256_PATTERN.fullmatch(value):
            raise self.wrong(key, "the 64 hexadecimal digits of a SHA-256")
        return value

    def file(self, key: str, *, or_folder: bool = False) -> Path:
        """An existing file, or where that is allowed a folder, below the recipe's folder, links resolved.

        Confined because a recipe may come from a stranger, and a deployment copies and publishes what it names.
        """
        value = self.text(key)
        folder = self.path.parent.resolve()
        fix = "paths in a recipe are relative to its folder and stay inside it"
        if not value or "\0" in value or Path(value).is_absolute() or ".." in Path(value).parts:
            raise RecipeError(f"{self.path}: {self.name(key)!r} is {value!r}", fix=fix)
        try:
            found = (folder / value).resolve()
        except (OSError, ValueError, RuntimeError):  # links in a circle, or a name that no file can have
            raise RecipeError(f"{self.path}: {self.name(key)!r} names {value}, which no file can be", fix=fix) from None
        if not found.is_relative_to(folder):
            raise RecipeError(f"{self.path}: {self.name(key)!r} leads outside the recipe's folder ({value})", fix=fix)
        if not is_input(found) and not (or_folder and found.is_dir()):
            raise RecipeError(f"{self.path}: {self.name(key)!r} names {value}, which is not there", fix=f"put it into {folder}")
        note_read(found)
        return found

    def table(self, key: str, known: Sequence[str]) -> Table:
        """The table below `key`; empty where the file has none."""
        value = self.values.get(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a table")
        return Table(self.path, self.name(key), value, known)

    def tables(self, key: str, known: Sequence[str]) -> list[Table]:
        """The array of tables ``[[key]]``."""
        value = self.values.get(key, [])
        if not isinstance(value, list) or len(value) > 256 or not all(isinstance(item, dict) for item in value):
            raise self.wrong(key, f"an array of tables, written [[{self.name(key)}]]")
        return [Table(self.path, f"{self.name(key)}[{i}]", item, known) for i, item in enumerate(value)]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
