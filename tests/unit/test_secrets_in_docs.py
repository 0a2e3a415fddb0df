"""No command that we show makes a secret an argument of a program: arguments are in the list of processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spotledger.cli.demo import curl_lines

ROOT = Path(__file__).parents[2]
PAGES = [
    *ROOT.glob("*.md"),
    *(ROOT / "docs").rglob("*.md"),
    *(file for file in (ROOT / "examples").rglob("*") if file.is_file() and file.suffix != ".class"),
    *(ROOT / "src/spotledger/cli").glob("*.py"),
    *(ROOT / "src/spotledger/http").rglob("*.py"),
]
#: What shows a secret in the arguments of a program. ``printf`` and ``echo`` are built into the shell.
SHOWN = {
    "openssl with the secret": re.compile(r"openssl\b[^|\n]*-hmac (?!SECRET`)|-macopt (hex)?key:"),
    "curl with a token": re.compile(
        r"\bcurl\b[^|]*?(-H|--header|--oauth2-bearer)[ =]?[\"']?(Authorization|[^@ ]*Bearer|\$)"
    ),
    "curl with a signed URL": re.compile(r"\bcurl\b[^|#]*[?&]signature="),
    "an option with a secret": re.compile(r"--(secret|secretkey|token|password|master-key)[= ][\"']?[$A-Za-z0-9]"),
    "a password in an address": re.compile(r"(psql|redis-cli)\b.*://[^ :]+:[^ @]+@"),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_shows_no_secret_as_an_argument(page: Path) -> None:
    """Commands in docs, examples and messages read secrets from files, pipes or the environment."""
    text = page.read_text(encoding="utf-8", errors="replace").replace("\\\n", " ")
    found = [(what, line.strip()) for line in text.splitlines() for what, shown in SHOWN.items() if shown.search(line)]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        'printf %s "$text" | openssl dgst -sha256 -hmac $SECRET',
        "openssl mac -digest SHA256 -macopt key:abc HMAC",
        'curl -s -H "Authorization: Bearer $(cat token)" http://h',
        "curl --header 'Authorization: Bearer abc' http://h",
        'curl -H "$auth" http://h',
        'curl -sS "$URL/getBalance?$text&signature=$signature"',
        "spotledger get-balance --secret abc",
    ],
)
def test_line_with_a_secret_is_found(line: str) -> None:
    """The patterns find what the pages showed once, and its relatives."""
    assert any(shown.search(line) for shown in SHOWN.values())


def test_lines_of_the_demo_hold_no_secret() -> None:
    """The demo's lines read the key from its file, wherever that is."""
    lines = curl_lines("http://127.0.0.1:8080", Path("it's/demo.key"))
    assert not any(shown.search(lines.replace("\n", " ")) for shown in SHOWN.values())
    assert lines.endswith("""'it'"'"'s/demo.key' | curl -s --config -; echo""")
