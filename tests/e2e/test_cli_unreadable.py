"""Every command on files and folders that cannot be used: one line that says what to do, and exit code 3."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support_audit import make
from support_commands import COMMANDS, call_of
from support_unreadable import NOBODY

#: The parameters that name a file or a folder, and what each is: read, written, or the data folder.
PATHS = {
    "data": "folder",
    "config": "read",
    "token_file": "read",
    "secret_file": "read",
    "master_key_file": "key",  # a folder is no key, which is another error
    "new_key_file": "key",
    "next_master_key_file": "key",
    "file": "read",
    "tls_cert": "read",
    "tls_key": "read",
}
#: Files that a command writes.
WRITTEN = {("backup", "file"), ("export journal", "file"), ("token create", "file")}
#: Files that a command does not look at, or only once it has found something else.
UNSEEN = {
    *(("settings", name) for name in ("master_key_file", "next_master_key_file", "tls_cert", "tls_key")),
    ("restore", "master_key_file"),
}
#: Files of the data folder that a command does without.
UNNEEDED = {
    "books.db": ("recover", "rebuild", "backup", "export journal"),
    "keys.db": ("recover", "rebuild", "export journal"),
    "noted-head": ("rebuild",),
    "owner.lock": ("export journal",),
}
#: Commands that do not touch a ledger in a folder.
WITHOUT_FOLDER = {"settings", "migrate", "reference", "get-balance"}


def _results(calls: list[list[str]], env: dict[str, str] | None = None) -> list[dict[str, Any]]:
    """Run *calls* as somebody who owns nothing here, where this process may become one."""
    program = [sys.executable, str(Path(__file__).parents[1] / "support_unreadable.py")]
    done = subprocess.run(
        program,
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"HOME": "/", **(env or {})},
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def _assert_all_say_so(calls: list[list[str]]) -> None:
    """Run *calls*; each ends with one line on standard error, no traceback, and exit code 3."""
    wrong = []
    for call, result in zip(calls, _results(calls), strict=True):
        lines = result["stderr"].splitlines()
        is_line = len(lines) == 1 and lines[0].startswith("spotledger: ") and lines[0].endswith("]")
        if call[0] == "audit" and not lines:  # what could not be looked at is in its report
            is_line = "INCOMPLETE" in result["stdout"] and "not checked: " in result["stdout"]
        is_without = "There is no " in result["stderr"]  # a folder without a ledger is no error of the system
        if (result["code"], result["traceback"], is_line) != (1 if is_without else 3, "", True):
            wrong.append((call, result))
    assert not wrong


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that others may enter, with things that they cannot use."""
    if os.geteuid() == 0:
        for parent in (tmp_path, *tmp_path.parents):
            parent.chmod(parent.stat().st_mode | 0o055)
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "file").write_text("x")
    (tmp_path / "locked").chmod(0)
    (tmp_path / "closed").write_text("x")
    (tmp_path / "closed").chmod(0)
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").write_text("x")
    (tmp_path / "open").write_text('{"op": "deposit"}')
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    return tmp_path


@pytest.fixture
def ledger(place: Path) -> Path:
    """A whole ledger of the user who runs the commands."""
    folder = make(place / "ledger")
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            os.chown(path, NOBODY, NOBODY)
    return folder


def unusable(place: Path, use: str) -> list[str]:
    """Return paths that cannot be used as *use* says."""
    everywhere = [place / "locked" / "file", place / "loop" / "file", place / "plain" / "file", place / ("x" * 300)]
    of_use = {
        "key": [place / "closed", place / "missing"],
        "read": [place / "closed", place / "folder", place / "dangling", place / "missing"],
        "written": [place / "missing" / "file", place / "folder" / "file"],
        "folder": [place / "locked", place / "plain", place / "dangling", place / "locked" / "below" / "it"],
    }
    return [str(path) for path in (*everywhere, *of_use[use])]


def test_every_parameter_that_names_a_path_is_tried() -> None:
    """A new option for a file or a folder cannot be forgotten here."""
    for name, command in COMMANDS.items():
        for param in command.params:
            metavar = str(getattr(param, "metavar", None) or param.name).upper()
            if metavar in ("FILE", "DIR", "PATH"):
                assert param.name in PATHS, (name, param.name)


@pytest.mark.parametrize("parameter", [name for name in PATHS if name != "data"])
def test_file_that_cannot_be_used_is_one_line_and_exit_code_3(place: Path, ledger: Path, parameter: str) -> None:
    """Whatever is wrong with a file that a command is given, it says so in a line, and what to do."""
    calls = []
    for name, command in COMMANDS.items():
        names = [param.name for param in command.params]
        if parameter not in names:
            continue
        use = "written" if (name, parameter) in WRITTEN else PATHS[parameter]
        given = {"data": str(ledger)} if "data" in names else {}
        if name == "restore":
            given["data"] = str(place / "folder" / "new")
        if parameter == "token_file":
            given["operator_url"] = "http://127.0.0.1:9"
        if parameter in ("tls_cert", "tls_key"):
            given |= {"tls_cert": str(place / "open"), "tls_key": str(place / "open")}
        if (name, parameter) not in UNSEEN:
            calls += [call_of(name, **{**given, parameter: path}) for path in unusable(place, use)]
    assert len(calls) >= 6
    _assert_all_say_so(calls)


def test_data_folder_that_cannot_be_used_is_one_line_and_exit_code_3(place: Path) -> None:
    """Every command on a folder that is locked, is a file, is a loop, or does not exist and cannot be made."""
    calls = []
    for name, command in COMMANDS.items():
        names = [param.name for param in command.params]
        if "data" not in names or name in WITHOUT_FOLDER:
            continue
        given = {"file": str(place / "open")} if name in ("restore", "import balances", "batch") else {}
        if name == "copy":
            given["database"] = "postgresql://nobody@127.0.0.1:9/nothing"
        calls += [call_of(name, **{**given, "data": path}) for path in unusable(place, "folder")]
    assert len(calls) > 150
    _assert_all_say_so(calls)


@pytest.mark.parametrize("name", ["journal.db", "books.db", "keys.db", "noted-head", "owner.lock"])
def test_file_of_the_ledger_that_cannot_be_used_is_one_line_and_exit_code_3(
    place: Path, ledger: Path, name: str
) -> None:
    """A file in the data folder that this user may not use is named by every command that needs it."""
    (ledger / name).touch()
    (ledger / name).chmod(0)
    if os.geteuid() == 0:
        os.chown(ledger / name, 0, 0)
    calls = []
    for command in (
        "coin list",
        "deposit",
        "balances",
        "token list",
        "recover",
        "rebuild",
        "backup",
        "export journal",
        "serve",
    ):
        if command in UNNEEDED.get(name, ()):
            continue
        given = {"file": str(ledger / f"{command.split()[0]}-made")} if command in ("backup", "export journal") else {}
        calls.append(call_of(command, data=str(ledger), **given))
    _assert_all_say_so(calls)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that its user may not write")
def test_folder_that_cannot_be_written_is_one_line_and_exit_code_3(place: Path, ledger: Path) -> None:
    """A read-only folder, as on a disk that was mounted so after errors, is named; an audit only reads."""
    ledger.chmod(0o500)
    [audited] = _results([call_of("audit", data=str(ledger), processes="1")])
    assert audited["code"] == 0
    ledger.chmod(0o555)
    os.chown(ledger, 0, 0)
    (ledger / "owner.lock").unlink()
    _assert_all_say_so(
        [call_of(name, data=str(ledger)) for name in ("coin list", "deposit", "recover", "rebuild", "serve")]
    )


@pytest.mark.parametrize("arguments", [["settings"], ["settings", "--json"], ["reference", "errors"], ["--help"]])
def test_output_that_cannot_be_written_is_one_line_and_exit_code_3(arguments: list[str]) -> None:
    """Where the output goes to a full disk, the command says so instead of ending as if all were well."""
    program = "from spotledger.cli.main import main; main()"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 3, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "disk is full" in done.stderr


def test_output_that_nobody_reads_ends_quietly() -> None:
    """Closing the reader of a pipe is no error that anybody has to be told of."""
    read, write = os.pipe()
    os.close(read)
    program = "from spotledger.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "reference", "errors"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert done.stderr == ""
