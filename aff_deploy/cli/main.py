"""The application: which commands there are, and what becomes of errors and signals.

Exit codes: 0 done; 1 a check failed; 2 wrong usage; 3 bad input; 4 something is missing here;
70 a bug in aff-deploy (with its traceback); 130 and 143 interrupted and terminated.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from aff_deploy import __version__
from aff_deploy.artifact import confine_libraries, kept_apart, reason_of
from aff_deploy.cli import convert, deploy, doctor, engine, export, graph, inspect, validate
from aff_deploy.cli.signals import watch_signals
from aff_deploy.cli.streams import leave, printable, safe_streams
from aff_deploy.errors import AffDeployError, OutputError, UsageError

EXIT_BUG = 70
EXIT_PIPE = 128 + 13
MAX_MESSAGE = 1000
"""Characters of an error, whose end says what to do."""
EXTRA_OF = {"torch": "cpu", "onnxscript": "cpu", "onnxruntime": "cpu", "PIL": "images"}

app = typer.Typer(
    name="aff-deploy",
    help="From a PyTorch network with attentional feature fusion to an optimised, validated ONNX file.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 bad input, 4 something is missing here.",
    no_args_is_help=False,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("deploy")(deploy.deploy)
app.command("export")(export.export)
app.command("optimize")(graph.optimize)
app.command("build-engine")(engine.build_engine)
app.command("inspect")(inspect.inspect)
app.command("validate")(validate.validate)
app.command("convert-weights")(convert.convert_weights)
app.command("doctor")(doctor.doctor)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aff-deploy {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Take networks with attentional feature fusion from PyTorch to optimised, validated ONNX."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: with no `arguments` as a program, else by `SystemExit`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # --debug is accepted anywhere, because it is added to a command that has just failed.
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    confine_libraries()
    stop_watching = watch_signals()
    try:
        with safe_streams(), kept_apart():
            try:
                code = _run(words or ["--help"], debug)
            except OutputError as error:  # of stdout, on which a failure was to be told
                code = error.exit_code
            if arguments is None:
                leave(code)
    finally:
        stop_watching()
    sys.exit(code)


def _run(words: Sequence[str], debug: bool) -> int:
    try:
        _require_folder()
        result = app(words, prog_name="aff-deploy", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except AffDeployError as error:
        return _report(error, str(error), error.exit_code, debug)
    except typer.TyperException as error:
        message = " ".join(error.format_message().split())
        return _report(error, f"{message.rstrip('.')}; see --help" if error.exit_code == 2 else message, error.exit_code, debug)
    except BrokenPipeError:
        return EXIT_PIPE
    except SystemExit as error:
        # Typer's own answer to a closed pipe while it prints help; it has already silenced stdout.
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            return EXIT_PIPE
        return error.code if isinstance(error.code, int) else _bug()
    except ModuleNotFoundError as error:
        extra = EXTRA_OF.get((error.name or "").partition(".")[0])
        if extra is None:
            return _bug()
        return _report(error, f"{error.name} is not installed; pip install 'aff-deploy[{extra}]'", 4, debug)
    except MemoryError as error:
        return _report(error, "there is not enough memory for this; use a machine with more, or smaller shapes", 4, debug)
    except OSError as error:
        # Whatever the system refuses is told in one line; what is expected to be refused is told better where it is met.
        at = f" at {error.filename}" if error.filename is not None else ""
        return _report(error, f"the system refused{at}: {reason_of(error)}; check the path and the place", 3, debug)
    except Exception:
        return _bug()


def _require_folder() -> None:
    """Relative paths need a folder that they are relative to."""
    try:
        os.getcwd()
    except OSError:
        raise UsageError("the current folder does not exist any more", fix="change to one that does") from None


def _report(error: Exception, message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exception(error, file=sys.stderr)
    print("error: " + printable(" ".join(message.split()), MAX_MESSAGE), file=sys.stderr)
    return code


def _bug() -> int:
    traceback.print_exc(file=sys.stderr)
    print("This is a bug in aff-deploy: please report it with the lines above.", file=sys.stderr)
    return EXIT_BUG
