"""The demo: from an empty folder to a signed getBalance, and again."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import support_service

FREE_PORTS = ("--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0")
USDT = {"freeze": "3062.17437341", "available": "3867.43650012"}


def demo_once(folder: Path, *more: str) -> str:
    """Run the demo to its end and return what it said."""
    done = support_service.run("demo", "--once", "--data", folder, *FREE_PORTS, *more)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def answer_in(output: str) -> dict[str, object]:
    """Find the answer of getBalance in the demo's output."""
    found = json.loads(next(line for line in output.splitlines() if line.startswith('{"code"')))
    assert isinstance(found, dict)
    return found


def test_demo_once_shows_the_answer_as_table_and_json(tmp_path: Path) -> None:
    """The demo ends with exactly the balances of the reference page, for people and as JSON."""
    output = demo_once(tmp_path / "demo")
    answer = answer_in(output)
    assert answer["code"] == 200
    data = answer["data"]
    assert isinstance(data, dict)
    assert data["usdt"] == USDT
    assert {"btc", "eth", "usdt", "ltc", "forth", "shib"} <= data.keys()
    assert float(data["forth"]["available"]) > 0
    assert re.search(r"^usdt +3867\.43650012 +3062\.17437341 +6929\.61087353$", output, re.MULTILINE)


def test_demo_twice_books_nothing_again_and_uses_the_same_key(tmp_path: Path) -> None:
    """A second start finds the data and the access key of the first."""
    first, second = demo_once(tmp_path / "demo"), demo_once(tmp_path / "demo")
    assert "Booked " in first
    assert "none was booked again" in second
    assert answer_in(first) == answer_in(second)
    key = json.loads((tmp_path / "demo" / "demo.key").read_text())
    assert (
        len(json.loads(support_service.run("key", "list", "--json", "--data", tmp_path / "demo").stdout)["keys"]) == 1
    )
    token = (tmp_path / "demo" / "operator.token").read_text().strip()
    for shown in (first, second):
        assert not [secret for secret in (key["secretkey"], key["accesskey"], token) if secret in shown]
    assert stat.S_IMODE((tmp_path / "demo" / "demo.key").stat().st_mode) == 0o600


def test_demo_behind_a_proxy_calls_its_own_service_directly(tmp_path: Path) -> None:
    """A proxy that the environment names is no way to a service on this machine; commands know that too."""
    env = support_service.environment(http_proxy="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9")
    done = support_service.run("demo", "--once", "--data", tmp_path / "demo", *FREE_PORTS, env=env)
    assert done.returncode == 0, done.stderr
    running = support_service.start(tmp_path / "demo")
    done = support_service.run("holds", "alice", "--json", "--data", running.folder, env=env)
    running.stop()
    assert len(json.loads(done.stdout)["holds"]) == 4


@pytest.mark.parametrize("spoiled", ["", "{}", "[]", '{"accesskey": "gone", "secretkey": "gone"}', None])
def test_demo_whose_key_file_is_lost_makes_another_key(tmp_path: Path, spoiled: str | None) -> None:
    """A lost or damaged key file costs a new key, not the demo."""
    demo_once(tmp_path / "demo")
    file = tmp_path / "demo" / "demo.key"
    if spoiled is None:
        file.unlink()
    else:
        file.write_text(spoiled)
    assert answer_in(demo_once(tmp_path / "demo"))["code"] == 200


def test_demo_leaves_balances_beyond_64_bits_and_explains_each_freeze(tmp_path: Path) -> None:
    """One balance is far beyond 64 bits, and every freeze is the sum of its open holds."""
    demo_once(tmp_path / "demo")
    for customer in ("alice", "bob", "carol"):
        told = [
            json.loads(support_service.run(command, customer, "--json", "--data", tmp_path / "demo").stdout)
            for command in ("balances", "holds")
        ]
        frozen: dict[str, int] = {}
        for hold in told[1]["holds"]:
            frozen[hold["coin"]] = frozen.get(hold["coin"], 0) + units(hold["remaining"])
        for coin, balance in told[0]["balances"].items():
            assert units(balance["freeze"]) == frozen.get(coin, 0)
    assert units(told[0]["balances"]["shib"]["available"]) > 2**64 * 1000


def units(amount: str) -> int:
    """Return *amount* in units of eighteen decimals."""
    whole, _, decimals = amount.partition(".")
    return int(whole + decimals.ljust(18, "0"))


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("python3")), reason="needs curl and python3")
def test_demo_keeps_serving_and_its_lines_work_as_pasted(tmp_path: Path) -> None:
    """The curl line, the Python lines and the operator's lines do what they say, word for word; SIGINT ends it."""
    process = subprocess.Popen(
        [*support_service.PROGRAM, "demo", "--data", str(tmp_path / "my demo"), *FREE_PORTS],
        env=support_service.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        output = ""
        while "Serving." not in output:
            line = process.stdout.readline()
            assert line, process.stderr.read()
            output += line
        curl = output.split("paste it:\n")[1].split("In Python:")[0]
        assert json.loads(bash(curl)) == answer_in(output)
        python = output.split("In Python:\n")[1].split("As the exchange")[0]
        lines = "\n".join(line[4:] for line in python.splitlines())
        done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True, timeout=60)
        assert "3867.43650012" in done.stdout
        over_http = output.split("over HTTP:\n")[1].split("Serving.")[0].replace("\\\n", " ")
        token, read, write = (line.strip() for line in over_http.splitlines() if line.strip())
        assert json.loads(bash(f"{token}\n{read}"))["balances"]["usdt"] == USDT
        assert json.loads(bash(f"{token}\n{write}"))["entry"]["kind"] == "deposit"
        commands = output.split("happens once):\n")[1].split("As the exchange")[0]
        for command in (line.strip() for line in commands.splitlines() if line.strip()):
            assert bash(command)
    finally:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")


def bash(line: str) -> str:
    """Run *line* as if it were pasted into bash, with the program on the path."""
    env = support_service.environment()
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    done = subprocess.run(["bash", "-c", line], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_demo_on_a_taken_port_says_so_and_names_the_flag(tmp_path: Path) -> None:
    """A taken port is one clear line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = support_service.run("demo", "--once", "--data", tmp_path / "demo", "--listen", address)
    assert done.returncode == 1
    assert "--listen HOST:PORT" in done.stderr
    assert done.stderr.count("\n") == 1


def test_demo_stays_out_of_a_ledger_that_is_not_its_own(tmp_path: Path) -> None:
    """The demo's customers never get into another ledger, named by flag or by the environment."""
    support_service.run("coin", "add", "eur", "--scale", "2", "--data", tmp_path / "real")
    done = support_service.run("demo", "--once", "--data", tmp_path / "real", *FREE_PORTS)
    assert done.returncode == 1
    assert "is not the demo's" in done.stderr
    env = support_service.environment(SPOTLEDGER_DATA=str(tmp_path / "real"))
    assert support_service.run("demo", "--once", *FREE_PORTS, env=env, cwd=tmp_path).returncode == 0
    assert (tmp_path / "data" / "demo" / "journal.db").exists()
    listed = json.loads(support_service.run("coin", "list", "--json", "--data", tmp_path / "real").stdout)
    assert [coin["coin"] for coin in listed["coins"]] == ["eur"]
