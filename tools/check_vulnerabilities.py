"""
``make vulnerabilities``: compare the locked requirements with what is known about vulnerabilities, with pip-audit.

Exit code 1: a locked package has a known vulnerability. One that does not concern us is recorded, with a reason and the
day on which to look again, in ``requirements/vulnerability-exceptions.toml``. Where the data cannot be had, this says
so and ends with 0: a machine without a network must still be able to run the checks.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
REQUIREMENTS: Final = ROOT / "requirements"
EXCEPTIONS: Final = REQUIREMENTS / "vulnerability-exceptions.toml"
#: Where pip-audit looks: first one, and if that knows nothing, the other.
SERVICES: Final = ("pypi", "osv")
PATIENCE_SECONDS: Final = 120
SOCKET_SECONDS: Final = 10


@dataclass(slots=True)
class Answer:
    """What one service knows: vulnerabilities as (id, package, version), and what it could not look up."""

    found: list[tuple[str, str, str]] = field(default_factory=list)
    checked: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    #: Why nothing was learnt, if nothing was.
    failure: str = ""


def main(program: str, requirements: Path = REQUIREMENTS, exceptions: Path = EXCEPTIONS) -> int:
    """Check the locks in *requirements* with the pip-audit at *program*; return the exit code."""
    files = sorted(requirements.glob("*.txt"))
    failures = []
    for service in SERVICES:
        answer = ask(program, service, files)
        if answer.checked:
            break
        failures.append(f"  {answer.failure}")
    else:
        _say(
            "NOT CHECKED: no data about vulnerabilities could be had here, so nothing is known of the locked packages."
        )
        _say(*failures, "  Run `make vulnerabilities` on a machine that reaches the data.")
        return 0
    if answer.unknown:
        _say(f"NOT CHECKED, because nothing is known about them: {', '.join(sorted(answer.unknown))}")
    wrong = problems(answer, read_exceptions(exceptions), datetime.now(UTC).date())
    _say(*wrong, f"{len(answer.checked)} packages were checked; {len(wrong)} problems")
    return 1 if wrong else 0


def ask(program: str, service: str, files: Iterable[Path]) -> Answer:
    """Ask one *service* about the packages in *files*."""
    command = [program, "--vulnerability-service", service, "--format", "json", "--progress-spinner", "off"]
    command += ["--require-hashes", "--disable-pip", "--timeout", str(SOCKET_SECONDS)]
    for file in files:
        command += ["--requirement", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
        packages = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return Answer(failure=f"{service} did not answer within {PATIENCE_SECONDS} s.")
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return Answer(failure=f"{service}: pip-audit ended with {done.returncode}: {last[:300]}")
    return read(packages, service)


def read(packages: Iterable[Mapping[str, Any]], service: str) -> Answer:
    """Return what pip-audit says about *packages*."""
    answer = Answer(failure=f"{service} knows none of the locked packages.")
    for package in packages:
        name = str(package["name"])
        if "skip_reason" in package:
            answer.unknown.add(name)
            continue
        answer.checked.add(name)
        answer.found += [(str(it["id"]), name, str(package["version"])) for it in package["vulns"]]
    return answer


def read_exceptions(file: Path) -> dict[tuple[str, str], date]:
    """Return until when each exception holds, by id and package; raise ValueError if one is not as the file says."""
    found: dict[tuple[str, str], date] = {}
    for one in tomllib.loads(file.read_text(encoding="utf-8")).get("exception", []):
        if set(one) != {"id", "package", "because", "until"} or type(one["until"]) is not date:
            raise ValueError(f"{file.name}: an exception has id, package, because and until (a day); found {one}")
        if not re.search(r"\w+ \w+ \w+", str(one["because"])):
            raise ValueError(f"{file.name}: {one['id']} has no reason")
        found[one["id"], one["package"]] = one["until"]
    return found


def problems(answer: Answer, exceptions: Mapping[tuple[str, str], date], today: date) -> list[str]:
    """Return a line for each vulnerability without an exception that holds, and for each exception without one."""
    lines = []
    found = {(identity, package) for identity, package, _ in answer.found}
    for identity, package, version in sorted(set(answer.found)):
        until = exceptions.get((identity, package))
        if until is None:
            lines.append(f"{package} {version} has {identity}: take another version with make lock, or record why not")
        elif until < today:
            lines.append(f"{package} {version} has {identity}: the exception for it ended on {until}; look again")
    for identity, package in sorted(exceptions.keys() - found):
        if package in answer.checked:
            lines.append(f"the exception for {identity} of {package} is not needed any more; take it out")
    return lines


def _say(*lines: str) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
