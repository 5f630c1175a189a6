"""The command line: thin, one file a group of commands. Nothing here imports a framework until a command runs."""

from aff_deploy.cli.main import app, main

__all__ = ["app", "main"]
