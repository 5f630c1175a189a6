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
from aff_deploy.artifact import confine_libraries, kept_apart
from aff_deploy.cli import convert, deploy, doctor, engine, export, graph, inspect, validate
from aff_deploy.cli.console import Steps, write_json
from aff_deploy.cli.failures import Failure, bug, describe_failure, interruption, is_asked, print_error, without
from aff_deploy.cli.signals import watch_signals
from aff_deploy.cli.streams import leave, safe_streams
from aff_deploy.errors import OutputError, UsageError
from aff_deploy.recipe import bundled_recipes

COMPLETES = "_AFF_DEPLOY_COMPLETE"
"""What a shell sets that asks for completions."""
EXIT_PIPE = 128 + 13
EXIT_INTERRUPTED = 128 + 2

app = typer.Typer(
    name="aff-deploy",
    help="From a PyTorch network with attentional feature fusion to an optimised, validated ONNX file.",
    epilog="Exit codes: 0 done, 1 a check failed, 2 wrong usage, 3 bad input, 4 something is missing here.",
    no_args_is_help=False,
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
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="No progress on stderr; errors and notes stay.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Take networks with attentional feature fusion from PyTorch to optimised, validated ONNX."""


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: with no `arguments` as a program, else by `SystemExit`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Accepted anywhere: --debug because it is added to a command that has just failed, --quiet for scripts.
    debug, Steps.quiet = is_asked(words, "--debug"), is_asked(words, "-q", "--quiet")
    words = without(words, "--debug", "-q", "--quiet")
    confine_libraries()
    stop_watching = watch_signals(lambda code: _document(words, interruption(code)))
    try:
        with safe_streams(), kept_apart():
            try:
                code = _run(words, debug)
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
        result = app(words or ["--help"], prog_name="aff-deploy", standalone_mode=False)
        if not words:
            print(f"\nBundled recipes, for deploy and wherever a NETWORK goes:\n  {', '.join(bundled_recipes())}")
        sys.stdout.flush()
        if result == EXIT_INTERRUPTED:
            # A signal ends the process elsewhere: somebody's code has raised it.
            raise KeyboardInterrupt
        return result if isinstance(result, int) else 0
    except BrokenPipeError:
        return EXIT_PIPE
    except BaseException as error:
        # Typer's own answer to a closed pipe while it prints help; it has already silenced stdout.
        if type(sys.stdout).__name__ == "PacifyFlushWrapper":
            return EXIT_PIPE
        # And to a shell that asks for completions.
        if isinstance(error, SystemExit) and COMPLETES in os.environ:
            return error.code if isinstance(error.code, int) else 0
        return _report(error, words, debug)


def _require_folder() -> None:
    """Relative paths need a folder that they are relative to."""
    try:
        os.getcwd()
    except OSError:
        raise UsageError("the current folder does not exist any more", fix="change to one that does") from None


def _report(error: BaseException, words: Sequence[str], debug: bool) -> int:
    command = next((word for word in words if not word.startswith("-")), "")
    failure = describe_failure(error, command, _options)
    if debug or failure is None:
        traceback.print_exception(error, file=sys.stderr)
    if failure is None:
        print("This is a bug in aff-deploy: please report it with the lines above.", file=sys.stderr)
        return _end(words, bug(error))
    print_error(failure)
    return _end(words, failure)


def _end(words: Sequence[str], failure: Failure) -> int:
    """The exit code, and for a program what became of its command."""
    getattr(sys.stdout, "write_raw", sys.stdout.write)(_document(words, failure))
    sys.stdout.flush()
    return failure.exit


def _document(words: Sequence[str], failure: Failure) -> str:
    return write_json({"error": failure.to_dict()}) if is_asked(words, "--json") else ""


def _options() -> dict[str, list[str]]:
    """The options of every command, by its name."""
    group = typer.main.get_command(app)
    everywhere = ["--help", "--debug", "--quiet"]
    return {
        name: [option for parameter in command.params for option in parameter.opts] + everywhere
        for name, command in getattr(group, "commands", {}).items()
    }
