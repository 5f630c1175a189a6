"""What to do about an error, in the words of the command that reports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from aff_deploy.recipe.remedies import OPTION, WHOLE


def in_options_of(command: str, fix: str, options: Mapping[str, Sequence[str]]) -> str:
    """`fix` with every option that `command` does not have replaced by a command line that has it.

    Args:
        command: that ran.
        fix: of the error; a command line that it quotes whole stays as it is.
        options: of every command, by its name.
    """
    parts = WHOLE.split(fix)
    for i in range(0, len(parts), 2):
        parts[i] = OPTION.sub(lambda found: _in(command, found[0], options), parts[i])
    return "".join(parts)


def _in(command: str, option: str, options: Mapping[str, Sequence[str]]) -> str:
    if option in options.get(command, ()):
        return option
    other = next((name for name, known in options.items() if option in known), "")
    return f"aff-deploy {other} {option}" if other else option
