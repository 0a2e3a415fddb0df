"""The answers of the operator API about the service itself: readiness, audits, backups."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class Sealing(Struct, frozen=True):
    """How far sealing is behind the journal of an embedded ledger."""

    lag_entries: int


class Ready(Struct, frozen=True):
    """The service takes writes; ``seq`` is the head of its journal, ``rebuilding`` how far its books are, if broken."""

    seq: int
    sealing: Sealing | None = None
    rebuilding: str | None = None


class Finding(Struct, frozen=True):
    """One thing that is wrong: where, what was found, and what was expected."""

    code: str
    seq: int | None
    where: str
    found: str
    expected: str


class AuditReport(Struct, frozen=True):
    """
    The report of an audit: ``verdict`` is ``clean``, ``damaged``, or ``incomplete`` if something could not be checked.

    ``counts`` has the number of findings by code, ``findings`` the first of each code, ``advice`` what to do about
    them. Keep ``audited_to`` and ``hash`` elsewhere: a later audit can be checked against them.
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
    advice: tuple[str, ...]


class Audit(Struct, frozen=True):
    """An audit: ``running``, at the entry ``seq`` of ``last_seq``, or ``done``, with its report."""

    audit: str
    state: str
    began_ms: int
    seq: int
    last_seq: int
    report: AuditReport | None


class ClockState(Struct, frozen=True):
    """
    The clock of the service, in ms since 1970: the time that counts, and that of the wall clock.

    ``offset_ms`` is how far the wall clock is ahead. While ``trusted`` is false, nothing is booked, and ``reason`` says
    why. In a fleet ``wall_ms`` is the time of the database, unless the wall clock of the node has leapt.
    """

    trusted: bool
    now_ms: int
    wall_ms: int
    offset_ms: int
    reason: str | None


class RetiredMasterKey(Struct, frozen=True):
    """A master key that was in force before, and when it was replaced, in ms since 1970."""

    fingerprint: str
    retired_ms: int


class MasterKeyNode(Struct, frozen=True):
    """A process of a fleet that is alive: the master keys that it holds, and when it last said so."""

    place: str
    fingerprints: tuple[str, ...]
    announced_ms: int


class MasterKeyInForce(Struct, frozen=True):
    """
    The master key in force, by its fingerprint; ``source`` is where the node has it from.

    ``next`` is one that it could rotate to. While ``erased`` is false, what was sealed with an earlier key is still in
    files of the store. ``to_do`` is what is left to the operator.
    """

    fingerprint: str
    source: str
    erased: bool
    retired: tuple[RetiredMasterKey, ...]
    nodes: tuple[MasterKeyNode, ...]
    to_do: tuple[str, ...]
    next: str | None = None


class GateLock(Struct, frozen=True):
    """
    A lock on a customer's accounts, or on an address (of IPv6, a /64), until ``until_ms``.

    ``limit`` is the limit that was exceeded: ``address``, ``assets`` or ``account``. ``name`` lifts it.
    """

    name: str
    limit: str
    until_ms: int
    customer: str | None = None
    address: str | None = None


class GateLocks(Struct, frozen=True):
    """The locks that hold now; the first to end comes first."""

    locks: tuple[GateLock, ...]


class AccessLine(Struct, frozen=True):
    """
    How often something happened in the minute that began at ``time``, in ms since 1970.

    ``actor`` is ``token:ID``, ``key:`` and the first 8 characters of an access key, ``library``, or empty
    without a known credential. ``reason`` is the code of the refusal, None if the call passed.
    """

    time: int
    actor: str
    actor_label: str
    address: str
    call: str
    count: int
    outcome: str
    reason: str | None


class AccessPage(Struct, frozen=True):
    """
    A page of the access log of a node; ``next`` is the ``after`` of the next page, None on the last.

    ``failure`` says why the last lines could not be written, None while everything is in the log.
    """

    lines: tuple[AccessLine, ...]
    next: str | None
    failure: str | None


class Backup(Struct, frozen=True):
    """A backup: ``running``, with the pages that are left and in all, or ``done``, with what it contains."""

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

    def __post_init__(self) -> None:
        needed = ("pages_left", "pages") if self.state == "running" else ("ledger_id", "epoch", "seq", "hash")
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"Object missing required field `{missing[0]}`")
