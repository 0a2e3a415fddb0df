"""Idempotent writes of access keys and tokens, which are not in the journal."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from spotledger.errors import IdempotencyConflict
from spotledger.security.access_keys import KeyRing

SECRET_MEMBERS = ("secretkey", "token")


class KeptAnswer(NamedTuple):
    """The answer to a write, and whether it repeats an earlier write (then without its secret)."""

    answer: dict[str, Any]
    replayed: bool


class AccessKeyWrites:
    """
    Does each write of access keys and tokens once.

    A write and its kept answer, which contains no secret, are one transaction. Call it in the thread of
    ``Writer.beside``: it may wait.
    """

    def __init__(self, tables: Any, key_ring: KeyRing) -> None:
        self._tables = tables
        self._key_ring = key_ring

    def once(self, idempotency_key: str, request: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> KeptAnswer:
        """
        Return the answer of *make*, or the kept answer if *idempotency_key* was used before.

        Args:
            idempotency_key: The idempotency key.
            request: The request without secrets; it has to be the same each time that the key is used.
            make: Makes the write and returns its answer.

        Raises:
            IdempotencyConflict: The key was used before with another *request*; the message names the field.
        """
        try:
            # One transaction, so that no other node can make the same write after the look-up.
            with self._tables.together():
                kept = self._tables.kept_requests.get(idempotency_key)
                if kept is not None:
                    _check_same(idempotency_key, json.loads(kept[0]), request)
                    self._tables.confirm()  # the write may have ended before a standby had it
                    return KeptAnswer(json.loads(kept[1]), replayed=True)
                answer = make()
                without_secret = {name: None if name in SECRET_MEMBERS else answer[name] for name in answer}
                self._tables.kept_requests.keep(idempotency_key, json.dumps(request), json.dumps(without_secret))
        except IdempotencyConflict:
            raise  # nothing was written
        except BaseException:
            self._key_ring.forget()
            raise
        return KeptAnswer(answer, replayed=False)


def _check_same(idempotency_key: str, kept: Mapping[str, Any], request: Mapping[str, Any]) -> None:
    for name in (*request, *kept):
        if kept.get(name) != request.get(name):
            raise IdempotencyConflict(
                f"The idempotency key {idempotency_key} was used before with other content (the field {name});"
                " a new key would pass.",
                field=name,
            )
