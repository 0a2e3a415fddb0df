"""The operator API's calls about the locks of the traders' gate (rule R20): to see them, and to lift one."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from spotledger import paths
from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.answers import Answer, TimeMs
from spotledger.http.operator.calls import ADMIN, Call, Endpoint, TokenCheck, answer, query_of, route
from spotledger.ops.kept_locks import KeptLock, KeptLocks


class LockAnswer(Answer):
    """
    A lock on a customer's accounts, or on an address (of IPv6, a /64), until ``until_ms``.

    ``limit`` is the limit that was exceeded: ``address``, ``assets`` or ``account``. ``name`` lifts it.
    """

    name: str
    limit: str
    until_ms: TimeMs
    customer: str | UnsetType = UNSET
    address: str | UnsetType = UNSET


class LocksAnswer(Answer):
    """The locks that hold now; the first to end comes first."""

    locks: list[LockAnswer]


class LockCalls:
    """The calls about locks. They need no idempotency key: to lift a lock that is lifted is not found."""

    def __init__(self, locks: KeptLocks) -> None:
        self._locks = locks

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes."""
        return [
            route(token_check, paths.LOCKS, GET=Call(ADMIN, self.list, gives=LocksAnswer)),
            route(token_check, paths.LOCK, DELETE=Call(ADMIN, self.lift, gives=LockAnswer)),
        ]

    async def list(self, request: Request) -> Reply:
        """List the locks on customers and addresses that sent too many requests to the public listener."""
        query_of(request)
        return answer(LocksAnswer([_lock_answer(lock) for lock in await self._locks.all()]))

    async def lift(self, request: Request) -> Reply:
        """Lift a lock, on every worker, and with Redis on every node; who goes on too fast is locked again."""
        query_of(request)
        return answer(_lock_answer(await self._locks.lift(request.parameters["name"])))


def _lock_answer(lock: KeptLock) -> LockAnswer:
    whom = {lock.kind: lock.who}
    return LockAnswer(lock.name, lock.limit, lock.until_ms, whom.get("customer", UNSET), whom.get("address", UNSET))
