"""Which characters pass in texts that people read, and how the others are shown."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from spotledger.domain.operations import Deposit, Reverse
from spotledger.errors import InvalidRequest
from spotledger.security.access_keys import checked_label
from spotledger.texts import escaped, is_line

CLI = Path(__file__).parents[2] / "src/spotledger/cli"
WRITING = {"print", "click.echo", "click.secho", "sys.stdout.write", "sys.stderr.write"}
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
LINES = "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"
UNFIT = [
    *BIDI,
    *LINES,
    "\x00",
    "\t",
    "\x1b",
    "\x7f",
    "\x9b",
    "\u200b",
    "\u2060",
    "\ufeff",
    "\ufff9",
    "\ud800",
    "\U000e0041",
]


@pytest.mark.parametrize("character", UNFIT, ids=ascii)
def test_control_of_line_or_direction_is_refused_in_references_reasons_and_labels(character: str) -> None:
    """The same rule everywhere, and a message that says what would pass without repeating the character."""
    text = f"order{character}7"
    for refused in (
        lambda: Deposit("k", "alice", "usdt", "1", reference=text),
        lambda: Reverse("k", 1, text),
        lambda: checked_label(text),
    ):
        with pytest.raises(InvalidRequest, match="turn the direction of writing, would pass") as raised:
            refused()
        assert character not in raised.value.message
        assert raised.value.details["field"] in ("reference", "reason", "label")


@pytest.mark.parametrize(
    "text",
    ["order 7", "余额\u3000不足", "ملاحظة", "הערה", "نمی\u200cشود", "👩\u200d👧", "a\u00a0b", "\U00020000"],
    ids=ascii,
)
def test_text_of_any_language_passes(text: str) -> None:
    """Letters, spaces and joiners of every script pass."""
    assert is_line(text)
    assert Deposit("k", "alice", "usdt", "1", reference=text).reference == text
    assert checked_label(text) == text
    assert escaped(text) == text


def test_escaped_text_has_no_control_and_stays_the_same_json() -> None:
    """What is escaped reads as one line, and as JSON means what it did."""
    text = "余额 " + "".join(UNFIT)
    assert is_line(escaped(text))
    assert escaped(text, keep="\n").count("\n") == 1
    assert json.loads(escaped(json.dumps({"a": text}, ensure_ascii=False))) == {"a": text}


def test_commands_print_through_one_place() -> None:
    """No module of the command line but ``output`` writes to the terminal, so nothing goes around the escapes."""
    found = set()
    for file in CLI.glob("*.py"):
        calls = [
            node.func for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
        ]
        if {ast.unparse(call) for call in calls} & WRITING:
            found.add(file.name)
    assert found == {"output.py"}
