"""Writes about access keys and tokens: each happens once under its idempotency key, though none is in the journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from spotledger.errors import IdempotencyConflict
from spotledger.security.access_keys import KeyRing

SECRET_MEMBERS = ("secretkey", "token")


class KeptAnswer(NamedTuple):
    """The answer to such a write, and whether it is the repeat of an earlier one (then without its secret)."""

    answer: dict[str, Any]
    replayed: bool


class AccessKeyWrites:
    """
    Do writes about access keys and tokens once.

    What a write makes and what is kept of it are one transaction. No kept answer holds a secret. Call it while no
    commit of the journal uses the connection (``Writer.beside``).
    """

    def __init__(self, tables: Any, key_ring: KeyRing) -> None:
        self._tables = tables
        self._key_ring = key_ring

    def once(self, key: str, request: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> KeptAnswer:
        """
        Return what *make* returns, or what was kept of it when *key* was used before.

        Args:
            key: The idempotency key.
            request: What is asked for, without secrets; the same key must always come with the same request.
            make: Does the write and returns its answer.

        Raises:
            IdempotencyConflict: *key* was used before with another *request*; the message names the field.
        """
        try:
            # Within the transaction, so that no other node can do the same write between looking and making.
            with self._tables.together():
                kept = self._tables.kept_requests.get(key)
                if kept is not None:
                    _check_same(key, json.loads(kept[0]), request)
                    return KeptAnswer(json.loads(kept[1]), replayed=True)
                answer = make()
                without_secret = {name: None if name in SECRET_MEMBERS else answer[name] for name in answer}
                self._tables.kept_requests.keep(key, json.dumps(request), json.dumps(without_secret))
        except IdempotencyConflict:
            raise  # nothing was made
        except BaseException:
            self._key_ring.forget()
            raise
        return KeptAnswer(answer, replayed=False)


def _check_same(key: str, kept: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    for name in (*request, *kept):
        if kept.get(name) != request.get(name):
            raise IdempotencyConflict(
                f"The idempotency key {key} was used before with another {name}; a new key would pass.", field=name
            )
