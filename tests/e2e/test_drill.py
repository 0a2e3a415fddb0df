"""The drills of a fleet start as the docs say, tell in one line what is in the way, and leave nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers.kept import until
from servers.missing import ServerMissing, skip_or_fail
from servers.programs import find_program

DRILL = Path(__file__).parents[2] / "examples" / "fleet" / "drill"
#: What only ``make dev`` installs.
WITHOUT = """
import runpy, sys
for name in ("pytest", "_pytest", "hypothesis", "schemathesis", "playwright"):
    sys.modules[name] = None
sys.argv = [sys.argv[1], "--list"]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    command = [sys.executable, DRILL, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **more}
    )  # fmt: skip


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of the processes that run in *folder*, or with a file in it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            place = str((process / "cwd").readlink())
        except OSError:
            continue
        if str(folder) in command + place:
            found.append(command)
    return found


@pytest.fixture
def place() -> Iterator[Path]:
    """Give an empty folder that everybody may enter, as PostgreSQL has to, which does not run as root."""
    with tempfile.TemporaryDirectory(prefix="drill-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


def test_drill_needs_nothing_but_what_setup_installs() -> None:
    """Without the packages for tests it lists its drills, each with a sentence."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, DRILL], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 15
    for line in lines:
        name, sentence = line.split(maxsplit=1)
        assert name.isidentifier()
        assert sentence.endswith("."), line


def test_drill_started_by_another_python_uses_that_of_setup() -> None:
    """Started as a program, by a Python that has none of what it needs, it runs in the virtual environment."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    done = subprocess.run([base, "-I", DRILL, "--list"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "primary_killed" in done.stdout


def test_drill_without_setup_names_the_command(tmp_path: Path) -> None:
    """Where nothing was installed it says so in a line."""
    copied = tmp_path / "examples" / "fleet" / "drill"
    copied.parent.mkdir(parents=True)
    copied.write_bytes(DRILL.read_bytes())
    done = subprocess.run([sys.executable, "-I", copied], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert "make setup" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["node_killd"], 2, "there is no drill node_killd; node_killed is one"),
        (["--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["--seconds", "5", "node_killed"], 2, "--seconds is an option of snapshot_held"),
        (["--seconds", "soon"], 2, "'soon' is not a number from 1"),
        (["--first-port", "80"], 2, "'80' is not a number from 1024"),
        (["--postgres", "/nowhere", "node_killed"], 3, "/nowhere has no postgres and initdb that can be run; the"),
    ],
)
def test_argument_that_is_wrong_is_one_line(arguments: list[str], code: int, told: str) -> None:
    """It says what was found and what would pass, and the exit code tells the two apart."""
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done.stderr
    assert told in done.stderr


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        ("AssertionError('an entry\\nis lost')", 1, "made_up: FAILED: an entry is lost (program.py:"),
        ("ServerMissing('haproxy is not installed')", 3, "drill: made_up is left out: haproxy is not installed\n"),
        ("ServerDidNotStart('Address already in use')", 3, "drill: made_up is left out: another program took a port"),
    ],
)
def test_outcome_of_a_drill_is_one_line_and_the_exit_code(error: str, code: int, told: str) -> None:
    """A failure is told apart from what is only in the way."""
    program = (
        "import sys; from fleet import drills, program; from servers.kept import ServerDidNotStart\n"
        "from servers.missing import ServerMissing\n"
        f"def made_up(): raise {error}\n"
        "drills.drill(made_up); sys.exit(program.main(['made_up']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert (done.returncode, (done.stdout + done.stderr).count("\n")) == (code, 1), done.stderr
    assert (done.stdout + done.stderr).startswith(told)


def test_port_in_use_is_one_line_and_nothing_is_left(place: Path) -> None:
    """A port that was asked for and is taken is named, and what was started before is gone."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = run("--first-port", str(port), "node_killed", TMPDIR=str(place))
    if "node_killed is left out: no PostgreSQL" in done.stderr:
        skip_or_fail(ServerMissing(done.stderr))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr
    assert f"port {port} of 127.0.0.1 cannot be used: Address already in use; without --first-port" in done.stderr
    assert list(place.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="PostgreSQL runs as whoever runs the tests")
def test_temporary_folder_that_postgres_cannot_enter_is_one_line(place: Path) -> None:
    """It runs as somebody else where root runs the drill, and a folder of root's alone is named."""
    place.chmod(0o700)
    done = run("node_killed", TMPDIR=str(place))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (3, "", 1), done.stderr
    assert f"cannot enter {place}" in done.stderr
    assert list(place.iterdir()) == []


@pytest.mark.xdist_group("fleet")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_drill_that_is_interrupted_leaves_nothing_behind(place: Path, number: signal.Signals) -> None:
    """Ctrl-C ends every process that it started and removes every folder; so does whatever else ends it."""
    try:
        find_program("haproxy")
    except ServerMissing as problem:
        skip_or_fail(problem)
    with subprocess.Popen(
        [sys.executable, DRILL, "node_killed"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(place)},
    ) as process:  # fmt: skip
        until(lambda: any(place.glob("*/*/node1.log")) or process.poll() is not None, 40, "no node is started")
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number, told
        assert told.splitlines()[-1] == f"drill: ended by {number.name}; everything it started is gone"
        assert list(place.iterdir()) == []
    until(lambda: list(place.iterdir()) == [], 40, "a folder is left")
    until(lambda: processes_of(place) == [], 10, "a process is left")
