"""What the operator API answers about the service and what it does beside booking: readiness, audits, backups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ready:
    """The service takes writes; ``seq`` is the head of its journal."""

    seq: int


class Finding(NamedTuple):
    """One thing that is not as it should be: where, what was found, and what was expected."""

    code: str
    seq: int | None
    where: str
    found: str
    expected: str


@dataclass(frozen=True, slots=True)
class AuditReport:
    """
    What an audit says: ``verdict`` is ``clean``, ``damaged``, or ``incomplete`` where it could not look at everything.

    ``counts`` has all findings by code, ``findings`` the first of each code. ``audited_to`` and ``hash`` are worth
    noting elsewhere: a later audit can be held to them.
    """

    path: str
    verdict: str
    ledger_id: str | None
    epoch: int | None
    audited_to: int
    hash: str | None
    head_seq: int
    sealed_to: int
    entries: int
    postings: int
    refusals: int
    coins: int
    customers: int
    balances: int
    open_holds: int
    seconds: float
    counts: Mapping[str, int]
    findings: tuple[Finding, ...]
    unexamined: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Audit:
    """An audit: ``running``, at the entry ``seq`` of ``last_seq``, or ``done``, with its report."""

    audit: str
    state: str
    began_ms: int
    seq: int
    last_seq: int
    report: AuditReport | None


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup: ``running``, with the pages that are left and those in all, or ``done``, with what it holds."""

    file: str
    state: str
    pages_left: int | None = None
    pages: int | None = None
    ledger_id: str | None = None
    epoch: int | None = None
    seq: int | None = None
    hash: str | None = None
    booked_ms: int | None = None
    schema_version: int | None = None
    master_key_fingerprint: str | None = None
    made_ms: int | None = None
    bytes: int | None = None


def ready(answer: Json) -> Ready:
    """Read the answer of a service that takes writes."""
    return Ready(int(answer["seq"]))


def audit(answer: Json) -> Audit:
    """Read how far an audit is, or what it found."""
    report = answer["report"]
    return Audit(
        str(answer["audit"]),
        str(answer["state"]),
        int(answer["began_ms"]),
        int(answer["seq"]),
        int(answer["last_seq"]),
        None if report is None else _report(report),
    )


def backup(answer: Json) -> Backup:
    """Read how far a backup is, or what it holds."""
    state = str(answer["state"])
    needed = ("pages_left", "pages") if state == "running" else ("ledger_id", "epoch", "seq", "hash")
    if any(answer[name] is None for name in needed):
        raise TypeError
    found: dict[str, Any] = {field.name: answer.get(field.name) for field in fields(Backup)}
    return Backup(**found)


def _report(said: Json) -> AuditReport:
    found = {field.name: said[field.name] for field in fields(AuditReport)}
    found["counts"] = {code: int(count) for code, count in said["counts"].items()}
    found["findings"] = tuple(Finding(*(finding[name] for name in Finding._fields)) for finding in said["findings"])
    found["unexamined"] = tuple(said["unexamined"])
    return AuditReport(**found)
