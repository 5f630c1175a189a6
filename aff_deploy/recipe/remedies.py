"""What to do about an error, in the words of a recipe: a deployment has no options, only the keys of its recipe.

Errors call what can be set by the name of its option. A command line that is quoted whole, as in
``aff-deploy inspect FILE --json``, is not for the recipe and stays.
"""

from __future__ import annotations

import re

from aff_deploy.recipe.values import Recipe

WHOLE = re.compile(r"((?:aff-deploy|pip install|(?:build-engine|export|optimize|validate)(?= --)) [^;,()]*)")
"""A command line quoted whole, up to the end of its clause; ``aff-deploy`` may be left out before an option."""
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
KEYS = (
    (r",? or --calib seeded[^;,]*", ""),  # a recipe names data
    (r"--calib (\w+\.npz)", r'[calibration] data = "\1"'),
    (r"--calib\b", "[calibration] data"),
    (r"--data\b", "[evaluation] data"),
    (r"--(atol|rtol|min-cosine)\b", r"[tolerance.PRECISION] \1"),
    (r"--keep-fp32( NODE)?", "[engine] keep_fp32"),
    (r"--(fp32|fp16|bf16|int8|fp8)\b", r'[engine] precision = "\1"'),
    (r"--backend ([a-z][a-z-]*)", r'[engine] backend = "\1"'),
    (r"--io (\w+)", r'[engine] io = "\1"'),
    (r"--(min|opt|max)-shapes\b", r"\1 in [[inputs]]"),
    (r"--opset (\d+)", r"[export] opset = \1"),
    (r"--opset\b", "[export] opset"),
    (r"--exporter (\w+)", r'[export] exporter = "\1"'),
    (r"--weights( FILE)?\b", "[weights] file"),
    (r"--key ([^\s,;)]+)", r'[weights] key = "\1"'),
    (r"--key\b", "[weights] key"),
    (r"--arguments (\w+)=([^\s,;)]+)", r"[arguments] \1 = \2"),
    (r"--input\b", "[[inputs]]"),
    (r"--range(, or distribution in a recipe)?", "distribution in [[inputs]]"),
    (r"--(scale|mean|std)\b", r"[preprocessing] \1"),
    (r"--dynamic\b", "names in the shape of [[inputs]]"),
)
"""How an option is written, with its value where one follows, and the key of a recipe that does the same."""


def in_keys_of(recipe: Recipe, fix: str) -> str:
    """`fix` with every option that a recipe has a key for replaced by that key."""
    parts = WHOLE.split(fix)
    for i in range(0, len(parts), 2):
        for option, key in KEYS:
            parts[i] = re.sub(option, key, parts[i])
    words = "".join(parts).replace("min-cosine", "min_cosine")
    return words.replace("PRECISION", str(recipe.engine.precision))
