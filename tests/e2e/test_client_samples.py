"""The samples of the reference pages and the Python example, run as they stand."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import support_client as support

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["get-balance.md", "get-balance.zh-CN.md"]


@pytest.fixture
def server() -> Iterator[support.ScriptedServer]:
    """A server of this test alone."""
    with support.ScriptedServer() as started:
        yield started


def samples(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(command: list[str], url: str, secret: str = support.SECRETKEY) -> subprocess.CompletedProcess[str]:
    settings = {
        "SPOTLEDGER_URL": url,
        "SPOTLEDGER_ACCESSKEY": support.ACCESSKEY,
        "SPOTLEDGER_SECRETKEY": secret,
    }
    environment = os.environ | settings | {"PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=60, check=False
    )


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("number", [0, 1, 2])
def test_python_sample_of_the_page_prints_the_balance(number: int, page: str, server: support.ScriptedServer) -> None:
    """Each Python sample, run as it stands, prints what is available."""
    done = run([sys.executable, "-c", samples(page, "python")[number]], server.url)
    assert done.stderr == ""
    assert done.stdout.split()[0] == "3867.43650012"


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("python3")), reason="needs curl and python3")
def test_curl_sample_of_the_page_prints_the_answer(server: support.ScriptedServer) -> None:
    """The curl sample, run as it stands, prints the whole answer."""
    done = run(["sh", "-eu", "-c", samples(PAGES[0], "sh")[0]], server.url)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"code": 200, "data": support.DATA, "info": "success"}


def test_python_example_prints_each_coin(server: support.ScriptedServer) -> None:
    """The example prints a line for each coin and ends with 0."""
    done = run([sys.executable, str(ROOT / "examples" / "get_balance.py")], server.url)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["btc", "forth", "usdt"]
    assert "3062.17437341" in done.stdout


def test_python_example_refused_ends_with_one_and_no_secret(server: support.ScriptedServer) -> None:
    """A refusal is said on stderr, without the secret, and the example ends with 1."""
    done = run([sys.executable, str(ROOT / "examples" / "get_balance.py")], server.url, "wrong-secret")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("signature_refused: ")
    assert "wrong-secret" not in done.stderr
