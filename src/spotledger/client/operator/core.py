"""
The calls of the operator API without I/O: requests, how often they are sent again, and what their answers mean.

A write whose answer was lost is sent again with the same key: it happens once, whatever became of it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar

from msgspec import structs

from spotledger import paths
from spotledger.client.exchange import Failure, Send, Sleep, Steps
from spotledger.client.operator.decoding import decode
from spotledger.client.operator.key_answers import AccessKey, KeyPage, MadeKey, MadeToken, OperatorToken, TokenPage
from spotledger.client.operator.ledger_answers import (
    Coins,
    CustomerPage,
    Entry,
    EntryPage,
    EntryRead,
    Hold,
    HoldPage,
    HoldRead,
    LedgerBalances,
    Statement,
    TrialBalance,
    Written,
)
from spotledger.client.operator.messages import Json, Params, Reply, check_token, path_of, read_reply, request
from spotledger.client.operator.operations import Operation, batch_body, texts_of
from spotledger.client.operator.service_answers import Audit, Backup, Ready
from spotledger.client.problems import error_of_problem
from spotledger.client.reading import read_object
from spotledger.client.transport import check_base_url
from spotledger.errors import ProtocolError, Refused, TransportError, Unavailable

#: How often a call is made that got no answer, or was told to come again.
ATTEMPTS: Final = 4
FIRST_PAUSE_S: Final = 0.2
LONGEST_PAUSE_S: Final = 5.0
EVENT_LIMIT_BYTES: Final = 4 * 1024 * 1024

T = TypeVar("T")
#: Of a parameter of a query; one that is None is left out.
Value = str | int | None


class OperatorCore:
    """Makes the calls of one service; each is a generator of steps that somebody drives."""

    def __init__(
        self,
        base_url: str,
        token: str,
        attempts: int = ATTEMPTS,
        on_answer: Callable[[Json], object] | None = None,
    ) -> None:
        """Take what the clients take; raise ValueError for an argument of another form."""
        self.token = check_token(token)
        self.base_url = check_base_url(base_url)
        if attempts < 1:
            raise ValueError("attempts must be 1 or more")
        self.attempts = attempts
        self._on_answer = on_answer

    def call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        params: Params | None = None,
        attempts: int | None = None,
    ) -> Steps[Reply]:
        """Make one call, again where no answer came or the service asked for it, but not more than *attempts* times."""
        send = request(self.base_url, self.token, method, path, body, key, params)
        attempts = attempts or self.attempts
        for attempt in range(1, attempts + 1):
            answer = yield send
            problem: TransportError | Unavailable
            if isinstance(answer, Failure):
                problem = TransportError(f"{method} {self.base_url}: {answer.reason}")
            elif answer is None:
                raise TypeError("a request was driven without an answer")
            else:
                try:
                    reply = read_reply(answer)
                except Unavailable as unavailable:
                    problem = unavailable
                else:
                    if self._on_answer is not None:
                        self._on_answer(reply.document)
                    return reply
            if attempt == attempts or _is_long(problem):
                raise problem
            yield Sleep(pause_s(attempt, problem))
        raise AssertionError("the last attempt returns or raises")

    def ask(
        self,
        kind: type[T],
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        key: str | None = None,
        params: Params | None = None,
        attempts: int | None = None,
    ) -> Steps[T]:
        """Make one call, and decode its answer."""
        reply = yield from self.call(method, path, body, key, params, attempts)
        return decode(kind, reply.document)

    def get(self, kind: type[T], path: str, params: Params) -> Steps[T]:
        """Read *path*, and decode the answer."""
        return self.ask(kind, "GET", path, params=params)

    # --- reads: the query has the names that the API has ----------------------------------------------

    def coins(self, **query: Value) -> Steps[Coins]:
        """Read the listed coins."""
        return self.get(Coins, paths.COINS, query)

    def customers(self, **query: Value) -> Steps[CustomerPage]:
        """Read a page of the customers."""
        return self.get(CustomerPage, paths.CUSTOMERS, query)

    def balances(self, customer: str, **query: Value) -> Steps[LedgerBalances]:
        """Read what a customer has."""
        return self.get(LedgerBalances, path_of(paths.CUSTOMER_BALANCES, customer=customer), query)

    def hold(self, hold: str, **query: Value) -> Steps[Hold]:
        """Read one hold."""
        return (yield from self.get(HoldRead, path_of(paths.HOLD, hold=hold), query)).hold

    def holds(self, customer: str, **query: Value) -> Steps[HoldPage]:
        """Read a page of the holds of a customer."""
        return self.get(HoldPage, path_of(paths.CUSTOMER_HOLDS, customer=customer), query)

    def old_holds(self, **query: Value) -> Steps[HoldPage]:
        """Read a page of everybody's old open holds."""
        return self.get(HoldPage, paths.HOLDS, query)

    def statement(self, customer: str, **query: Value) -> Steps[Statement]:
        """Read a page of the entries about a customer."""
        return self.get(Statement, path_of(paths.CUSTOMER_ENTRIES, customer=customer), query)

    def entry(self, seq: int, **query: Value) -> Steps[Entry]:
        """Read one entry."""
        return (yield from self.get(EntryRead, path_of(paths.ENTRY, seq=seq), query)).entry

    def reversal_of(self, seq: int, **query: Value) -> Steps[int | None]:
        """Read which entry reversed another."""
        return (yield from self.get(EntryRead, path_of(paths.ENTRY, seq=seq), query)).reversed_by

    def entries(self, **query: Value) -> Steps[EntryPage]:
        """Read a page of the journal."""
        return self.get(EntryPage, paths.ENTRIES, query)

    def trial_balance(self, **query: Value) -> Steps[TrialBalance]:
        """Read the trial balance."""
        return self.get(TrialBalance, paths.TRIAL_BALANCE, query)

    # --- access keys ----------------------------------------------------------------------------------

    def keys(self, **query: Value) -> Steps[KeyPage]:
        """Read a page of the access keys."""
        return self.get(KeyPage, paths.ACCESS_KEYS, query)

    def create_key(
        self,
        customer: str,
        permissions: Sequence[str],
        label: str,
        addresses: Sequence[str],
        expires_ms: int | None,
        key: str,
    ) -> Steps[MadeKey]:
        """Make an access key."""
        body = {
            "customer": customer,
            "permissions": texts_of(permissions, "permissions"),
            "label": label,
            "addresses": texts_of(addresses, "addresses"),
            "expires_ms": expires_ms,
        }
        return self.ask(MadeKey, "POST", paths.ACCESS_KEYS, body, key)

    def rotate_key(self, accesskey: str, key: str) -> Steps[MadeKey]:
        """Revoke an access key and make another like it."""
        return self.ask(MadeKey, "POST", path_of(paths.ACCESS_KEY_ROTATION, accesskey=accesskey), {}, key)

    def revoke_key(self, accesskey: str) -> Steps[AccessKey]:
        """Revoke an access key."""
        return self.ask(AccessKey, "DELETE", path_of(paths.ACCESS_KEY, accesskey=accesskey))

    # --- operator tokens ------------------------------------------------------------------------------

    def tokens(self, **query: Value) -> Steps[TokenPage]:
        """Read a page of the operator tokens."""
        return self.get(TokenPage, paths.TOKENS, query)

    def create_token(self, scopes: Sequence[str], label: str, key: str) -> Steps[MadeToken]:
        """Make an operator token."""
        body = {"scopes": texts_of(scopes, "scopes"), "label": label}
        return self.ask(MadeToken, "POST", paths.TOKENS, body, key)

    def revoke_token(self, token_id: str) -> Steps[OperatorToken]:
        """Revoke an operator token."""
        return self.ask(OperatorToken, "DELETE", path_of(paths.TOKEN, token_id=token_id))

    # --- the service ----------------------------------------------------------------------------------

    def ready(self) -> Steps[Ready]:
        """Ask once whether the service takes writes: what it will be after a pause is another question."""
        return self.ask(Ready, "GET", paths.READYZ, attempts=1)

    def start_audit(self) -> Steps[Audit]:
        """Begin an audit, or join the one that is running."""
        return self.ask(Audit, "POST", paths.AUDITS)

    def audit(self, audit: str) -> Steps[Audit]:
        """Read how far an audit is."""
        return self.ask(Audit, "GET", path_of(paths.AUDIT, audit=audit))

    def make_backup(self, file: str | None) -> Steps[Backup]:
        """
        Begin a backup, and ask for it once.

        No key names it. Asked for again after a lost answer, a name would be refused as taken, by this backup or by an
        older one, and without a name there would be a second backup.
        """
        return self.ask(Backup, "POST", paths.BACKUPS, {"file": file}, attempts=1)

    def backup(self, file: str) -> Steps[Backup]:
        """Read how far a backup is."""
        return self.ask(Backup, "GET", path_of(paths.BACKUP, file=file))

    # --- operations -----------------------------------------------------------------------------------

    def do(self, operation: Operation) -> Steps[Written]:
        """Do one operation."""
        reply = yield from self.call("POST", operation.path, operation.body(), operation.key)
        written = decode(Written, reply.document)
        return structs.replace(written, replayed=True) if reply.replayed else written

    def execute(
        self, operations: Sequence[Operation], chains: Sequence[str | None] | None, atomic: bool
    ) -> Steps[list[Written | Refused]]:
        """Do operations in order as one batch; one outcome each."""
        if chains is not None and len(chains) != len(operations):
            raise ValueError(f"{len(chains)} chains are given for {len(operations)} operations")
        reply = yield from self.call("POST", paths.BATCHES, batch_body(operations, chains, atomic))
        results = reply.document.get("results")
        if not isinstance(results, list) or len(results) != len(operations):
            raise ProtocolError(f"the answer to a batch of {len(operations)} has not so many results")
        return [outcome(result) for result in results]


def outcome(result: Any) -> Written | Refused:
    """Read one result of a batch: what was written, or the refusal."""
    if isinstance(result, dict) and isinstance(result.get("code"), str):
        error = error_of_problem(422, {}, result)
        if isinstance(error, Refused):
            return error
        raise ProtocolError("a result of a batch is neither written nor refused")
    return decode(Written, result)


def _is_long(problem: Exception) -> bool:
    """Say whether the service asked to be left alone for longer than a call should take."""
    return isinstance(problem, Unavailable) and int(problem.details.get("retry_after_s", 0)) > LONGEST_PAUSE_S


def pause_s(attempt: int, problem: Exception | None = None) -> float:
    """Return how long to wait after the *attempt*-th try: longer each time, and never as long as everybody else."""
    asked = float(problem.details.get("retry_after_s", 0)) if isinstance(problem, Unavailable) else 0.0
    pause: float = min(FIRST_PAUSE_S * 2.0 ** (attempt - 1), LONGEST_PAUSE_S)
    return max(asked, pause * random.uniform(0.5, 1))  # noqa: S311 - no secret


class FeedCore:
    """Reads the journal's events: which entry comes next, and where to go on after a break."""

    def __init__(self, core: OperatorCore, after_seq: int) -> None:
        """Begin after the entry *after_seq*."""
        self._core = core
        self.after_seq = after_seq
        #: How often in a row nothing came.
        self.failures = 0
        self._text = b""

    def request(self) -> Send:
        """Return the request that goes on where the last one ended."""
        self._text = b""
        send = request(
            self._core.base_url, self._core.token, "GET", paths.ENTRIES, params={"after_seq": self.after_seq}
        )
        return Send(send.method, send.url, send.params, {**send.headers, "Accept": "text/event-stream"})

    def check(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Raise what an answer other than 200 says."""
        problem = None if status == 200 else read_object(body)
        if problem is not None:
            raise error_of_problem(status, headers, problem)

    def take(self, piece: bytes) -> Iterator[Entry]:
        """Give the entries that are whole now that *piece* has come."""
        self.failures = 0
        *events, self._text = (self._text + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._text) > EVENT_LIMIT_BYTES:
            raise ProtocolError("an event of the feed is too long")
        for event in events:
            fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line and line[:1] != b":")
            if b"id" in fields and b"data" in fields:
                found = decode(Entry, read_object(fields[b"data"]))
                if found.seq != self.after_seq + 1:
                    raise ProtocolError(f"entry {found.seq} came after entry {self.after_seq} in the feed")
                self.after_seq = found.seq
                yield found

    def failed(self, problem: TransportError | Unavailable) -> float:
        """Return how long to wait before the feed is asked for again, or raise *problem* after too many failures."""
        self.failures += 1
        if self.failures >= self._core.attempts:
            raise problem
        return pause_s(self.failures, problem)
