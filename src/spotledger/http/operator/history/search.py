"""What a search for entries asks for: the parameters of its query, checked."""

from __future__ import annotations

from collections.abc import Mapping

from spotledger.domain.accounts import check_coin, check_customer, is_house_name
from spotledger.domain.fields import KEY_MAX_CHARACTERS, check_reference
from spotledger.domain.journal import ACTOR
from spotledger.errors import InvalidRequest
from spotledger.http.operator.calls import time_in
from spotledger.http.operator.fields import KINDS
from spotledger.ledger.finding import Criteria


def criteria_in(query: Mapping[str, str]) -> Criteria:
    """
    Return what *query* asks for.

    Raises:
        InvalidRequest: A parameter has a form that no entry can have, so it would find nothing.
    """
    criteria = Criteria(*map(query.get, Criteria.__match_args__))
    if criteria.key is not None:
        _check_key(criteria.key)
    if criteria.reference is not None:
        check_reference(criteria.reference)
    if criteria.customer is not None and not is_house_name(criteria.customer):
        check_customer(criteria.customer)
    if criteria.coin is not None:
        check_coin(criteria.coin)
    if criteria.kind is not None and criteria.kind not in KINDS:
        _refuse("kind", criteria.kind, ", ".join(KINDS))
    if criteria.actor is not None and not ACTOR.fullmatch(criteria.actor):
        _refuse("actor", criteria.actor, "token:ID, key:FIRST-8-CHARACTERS, library or ledger")
    return criteria


def _check_key(key: str) -> None:
    """Check an idempotency key; those of the ledger itself begin with a blank."""
    if not 1 <= len(key.removeprefix(" ")) <= KEY_MAX_CHARACTERS or not key.isascii() or not key.isprintable():
        _refuse("key", key, f"1 to {KEY_MAX_CHARACTERS} printable ASCII characters")


def _refuse(field: str, found: str, passing: str) -> None:
    raise InvalidRequest(f"{field} is {found[:64]!r}; {passing} would pass", field=field)


def times_in(query: Mapping[str, str]) -> tuple[int | None, int | None]:
    """
    Return ``from_ms`` and ``to_ms``, each None if it is not given.

    Raises:
        InvalidRequest: One is no time, or the end is before the beginning.
    """
    from_ms, to_ms = time_in(query, "from_ms"), time_in(query, "to_ms")
    if from_ms is not None and to_ms is not None and to_ms < from_ms:
        raise InvalidRequest(f"to_ms is {to_ms}; a time from {from_ms}, which is from_ms, would pass", field="to_ms")
    return from_ms, to_ms
