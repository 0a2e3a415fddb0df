"""
Run every command of the command line on files that cannot be used; a program of its own, because root may use all.

It reads one JSON list of calls from standard input, each a name and arguments, and answers with a JSON list of results.
"""

from __future__ import annotations

import codecs
import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Iterator
from typing import Any

import click
from click.testing import CliRunner

import spotledger
from spotledger.cli.main import program

NOBODY = 65_534


def commands(command: click.Command = program, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Give every command with its path, such as ``("coin", "add")``."""
    if isinstance(command, click.Group):
        for name, below in command.commands.items():
            yield from commands(below, (*path, name))
    else:
        yield path, command


def run(arguments: list[str]) -> dict[str, Any]:
    """Run one command in this process; what it raises is told as a traceback is."""
    result = CliRunner().invoke(program, arguments, prog_name="spotledger")
    raised = result.exception
    crashed = raised is not None and not isinstance(raised, SystemExit)
    return {
        "code": result.exit_code,
        "stdout": result.stdout,
        "stderr": result.stderr,
        "traceback": f"{type(raised).__name__}: {raised}" if crashed else "",
    }


def import_everything() -> None:
    """Import what commands import late: the files of Python itself may be root's alone."""
    for module in pkgutil.walk_packages(spotledger.__path__, "spotledger."):
        importlib.import_module(module.name)
    for encoding in ("ascii", "idna", "latin-1", "utf-8-sig"):
        codecs.lookup(encoding)
    run(["settings"])
    run(["coin", "list", "--data", "/nowhere"])


if __name__ == "__main__":
    import_everything()
    calls = json.load(sys.stdin)
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    json.dump([run(arguments) for arguments in calls], sys.stdout)
