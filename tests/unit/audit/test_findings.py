"""The list of findings: bounded, counted, and each code documented."""

from __future__ import annotations

import ast
import json
from decimal import Decimal
from pathlib import Path

from spotledger.audit import findings as audit_findings
from spotledger.audit.findings import CODES, FINDINGS_OF_A_CODE, UNEXAMINED_LIMIT, Findings

AUDIT = Path(audit_findings.__file__).parent


def test_findings_of_one_code_are_capped_and_counted() -> None:
    """The list has the first of each code, the count all of them."""
    findings = Findings()
    for number in range(100):
        findings.add("chain_broken", number, "hash", b"\x00" * 500, "x" * 500)
    findings.add("time_falls", 1, "booked_ms", 1, 2)
    assert len(findings) == 101
    assert [finding.code for finding in findings.listed] == ["chain_broken"] * FINDINGS_OF_A_CODE + ["time_falls"]
    assert all(len(finding.found) <= 200 for finding in findings.listed)
    for number in range(100):
        findings.leave_out(f"table {number}")
        findings.leave_out(f"table {number}")
    assert len(findings.unexamined) == UNEXAMINED_LIMIT + 1


def test_finding_of_damaged_values_stays_short_and_can_be_written_as_json() -> None:
    """A name of a million characters is cut, and what is no number is no number of an entry."""
    findings = Findings()
    findings.add("row_repeated", Decimal("1.5"), "x" * 1_000_000, None, 10**5_000)  # type: ignore[arg-type]
    [finding] = findings.listed
    assert finding.seq is None
    assert len(finding.where) == 200
    assert len(json.dumps(finding)) < 1_000


def test_finding_codes_in_the_source_are_all_documented_and_all_used() -> None:
    """Each code that the audit can give has its line in CODES and in the how-to, and no other is there."""
    texts = set()
    for path in AUDIT.rglob("*.py"):
        if path.name != "findings.py":
            tree = ast.parse(path.read_text(encoding="utf-8"))
            texts |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    by_table = {
        f"{table}_row_{what}" for table in ("coin", "customer", "reversal") for what in ("missing", "extra", "differs")
    }
    assert set(CODES) - by_table <= texts
    page = (AUDIT.parents[2] / "docs" / "how-to" / "audit.md").read_text(encoding="utf-8")
    for code, meaning in CODES.items():
        assert f"| `{code}` | {meaning} |" in page
