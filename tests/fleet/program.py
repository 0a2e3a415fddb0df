"""The command line of ``examples/fleet/drill``."""

from __future__ import annotations

import argparse
import difflib
import inspect
import json
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

from fleet import (  # noqa: F401 - each adds its drills
    clock_drills,
    database_drills,
    frozen_node,
    networks,
    node_drills,
    patroni,
    primary_drills,
    standby_drills,
)
from fleet.drills import DRILLS, Report
from servers import kept, postgres
from servers.kept import PortInUse, ServerDidNotStart
from servers.missing import ServerMissing

#: Exit codes. A signal ends with 128 and its number.
PASSED: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
IN_THE_WAY: Final = 3
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: Options of single drills: their parameters of the same name.
OPTIONS: Final = ("entries", "seconds")
PORTS_MOST: Final = 30
#: What PostgreSQL, HAProxy and Redis say of a port that is in use, and what a node says.
PORT_TAKEN: Final = ("ddress already in use", "another process listens there")

ABOUT: Final = """Rehearse the bad days of a fleet on this machine.

A drill starts PostgreSQL servers, three nodes, HAProxy and whatever else it needs, in temporary folders and on free
ports of 127.0.0.1. It does the bad thing under load, checks the books, prints what it found, and leaves nothing behind.
"""
CODES: Final = f"""exit codes:
  {PASSED}  all drills passed
  {FAILED}  a drill failed
  {WRONG_USAGE}  wrong arguments
  {IN_THE_WAY}  none failed, and at least one could not run: a program is missing, or a port is in use
  128 and the number of the signal that ended it (130 after Ctrl-C)
"""


class Stopped(BaseException):
    """A signal asks the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Arguments(argparse.ArgumentParser):
    """A parser that says in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        """Exit with *message*."""
        self.exit(WRONG_USAGE, f"drill: {message}; drill --help shows what would pass\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the drills that *arguments* name, those of the command line where it is None; return the exit code."""
    asked = _parse(arguments)
    if asked.list:
        for name, drill in DRILLS.items():
            _say(f"{name:32} {sentence_of(drill)}")
        return PASSED
    for number in SIGNALS:
        signal.signal(number, _stop)
    try:
        if asked.postgres is not None:
            postgres.use_binaries(asked.postgres)
        with kept.in_one_folder():
            return _run(asked)
    except ServerMissing as problem:
        return _in_the_way(str(problem))
    except Stopped as stopped:
        sys.stderr.write(f"drill: ended by {signal.Signals(stopped.number).name}; everything it started is gone\n")
        return 128 + stopped.number


def sentence_of(drill: Callable[..., Report]) -> str:
    """Return the sentence that says what *drill* does."""
    return inspect.cleandoc(drill.__doc__ or "").splitlines()[0]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Arguments("drill", description=ABOUT, epilog=CODES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the drills to run; without a name, all of them")
    parser.add_argument("--list", action="store_true", help="list the drills, with a sentence each")
    parser.add_argument("--json", action="store_true", help="print one line of JSON for each drill")
    parser.add_argument("--seconds", type=_number_from(1), metavar="N", help="how long snapshot_held measures (45)")
    parser.add_argument(
        "--entries", type=_number_from(1000), metavar="N", help="entries written while node_frozen stands still (30000)"
    )
    parser.add_argument(
        "--first-port", type=_number_from(1024), metavar="N", help=f"take up to {PORTS_MOST} ports from N on"
    )
    parser.add_argument("--postgres", type=Path, metavar="FOLDER", help="the folder with PostgreSQL's binaries")
    asked = parser.parse_intermixed_args(arguments)
    for name in asked.names:
        if name not in DRILLS:
            near = difflib.get_close_matches(name, DRILLS, 1)
            parser.error(f"there is no drill {name}" + (f"; {near[0]} is one" if near else ""))
    asked.names = asked.names or list(DRILLS)
    for option in OPTIONS:
        if getattr(asked, option) is not None and not any(_takes(DRILLS[name], option) for name in asked.names):
            takers = ", ".join(name for name, drill in DRILLS.items() if _takes(drill, option))
            parser.error(f"--{option} is an option of {takers}, which is not among the drills to run")
    return asked


def _number_from(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isascii() or not text.isdecimal() or not least <= int(text) <= kept.PORT_LAST:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {kept.PORT_LAST}")
        return int(text)

    return number


def _takes(drill: Callable[..., Report], option: str) -> bool:
    return option in inspect.signature(drill).parameters


def _stop(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # cleaning up is not to be interrupted
    sys.stderr.write("drill: stopping what it started\n")
    raise Stopped(number)


def _run(asked: argparse.Namespace) -> int:
    codes = {PASSED}
    for name in asked.names:
        drill = DRILLS[name]
        options = {option: getattr(asked, option) for option in OPTIONS if _takes(drill, option)}
        kept.take_ports_from(asked.first_port)
        try:
            with kept.all_ended():
                report = drill(**{option: value for option, value in options.items() if value is not None}).as_json()
        except ServerMissing as problem:
            codes.add(_in_the_way(f"{name} is left out: {problem}"))
        except PortInUse as problem:
            codes.add(_in_the_way(f"{name} is left out: {problem}; without --first-port it finds free ones"))
        except Exception as problem:  # noqa: BLE001 - whatever went wrong, the drill failed, and the others go on
            codes.add(_failed(name, problem, asked.json))
        else:
            _passed(name, report, asked.json)
    return FAILED if FAILED in codes else max(codes)


def _passed(name: str, report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _say(json.dumps(report))
        return
    _say(f"{name}: passed; nothing lost, nothing doubled, nothing invented")
    details = report.pop("details")
    for what, value in {**report, **details}.items():
        if what != "drill":
            _say(f"    {what.replace('_', ' '):36} {value}")


def _failed(name: str, problem: Exception, as_json: bool) -> int:
    if isinstance(problem, ServerDidNotStart) and any(words in str(problem) for words in PORT_TAKEN):
        return _in_the_way(f"{name} is left out: another program took a port that was free; run the drill again")
    text = " ".join(str(problem).split()) or type(problem).__name__
    frames = traceback.extract_tb(problem.__traceback__)
    place = [frame for frame in frames if Path(frame.filename).parent == Path(__file__).parent][-1]
    where = f"{Path(place.filename).name}:{place.lineno}"
    _say(
        json.dumps({"drill": name, "failed": text, "where": where}) if as_json else f"{name}: FAILED: {text} ({where})"
    )
    return FAILED


def _in_the_way(text: str) -> int:
    sys.stderr.write(f"drill: {text}\n")
    return IN_THE_WAY


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
