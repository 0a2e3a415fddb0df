"""The Java example, run with a JDK and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import support_client as support

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "GetBalance.java"
JAVA = shutil.which("java")

pytestmark = pytest.mark.skipif(JAVA is None, reason="needs a JDK")


@pytest.fixture
def server() -> Iterator[support.ScriptedServer]:
    """A server of this test alone."""
    with support.ScriptedServer() as started:
        yield started


def run(url: str, **changed: str) -> subprocess.CompletedProcess[str]:
    settings = {
        "SPOTLEDGER_URL": url,
        "SPOTLEDGER_ACCESSKEY": support.ACCESSKEY,
        "SPOTLEDGER_SECRETKEY": support.SECRETKEY,
    }
    assert JAVA is not None
    return subprocess.run(
        [JAVA, "-XX:TieredStopAtLevel=1", str(EXAMPLE)],
        env=os.environ | settings | changed,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


def test_java_example_prints_the_answer_and_ends_with_zero(server: support.ScriptedServer) -> None:
    """With good credentials the JSON answer is printed, also with a slash at the end of the address."""
    done = run(server.url + "/")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"code": 200, "data": support.DATA, "info": "success"}
    assert len(server.seen) == 1


def test_java_example_wrong_secret_prints_the_refusal_and_ends_with_one(
    server: support.ScriptedServer,
) -> None:
    """A refusal is printed as it came, and the exit code says that it is one."""
    done = run(server.url, SPOTLEDGER_SECRETKEY="wrong-secret")
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 308
    assert "wrong-secret" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "behaviour",
    [
        support.Reply("<html>", 500),
        support.Reply({"data": {"code": {"available": "1.00", "freeze": "0.00"}}}),
        support.Reply("", 302, {"Location": "/trade/api/v1/getServerTime"}),
        support.close_at_once,
    ],
    ids=["html", "no code", "redirect", "closed"],
)
def test_java_example_bad_answer_ends_with_one(behaviour: support.Behaviour, server: support.ScriptedServer) -> None:
    """What is not a success by its code is none, and no redirect is followed."""
    server.script += [behaviour, behaviour]
    done = run(server.url)
    assert done.returncode == 1
    assert not server.calls("getServerTime")
    assert support.SECRETKEY not in done.stdout + done.stderr
    assert "signature" not in done.stderr


def test_java_example_missing_variable_ends_with_two() -> None:
    """Without a secret nothing is sent, and the missing variable is named."""
    done = run("http://127.0.0.1:1", SPOTLEDGER_SECRETKEY="")
    assert done.returncode == 2
    assert done.stderr.strip() == "set SPOTLEDGER_SECRETKEY"
