"""The operator API's calls about access keys and operator tokens. Only the first answer to a write has the secret."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from spotledger import paths
from spotledger.domain.accounts import check_customer
from spotledger.errors import AccessKeyRevoked, AccessKeyUnknown, InvalidRequest, NotFound, UnknownCustomer
from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.answers import (
    KeyAnswer,
    KeyMadeAnswer,
    KeysAnswer,
    TokenAnswer,
    TokenMadeAnswer,
    TokensAnswer,
)
from spotledger.http.operator.bodies import KeyBody, RotateBody, TokenBody, decode
from spotledger.http.operator.calls import (
    ADMIN,
    KEYS_WRITE,
    Call,
    Endpoint,
    TokenCheck,
    Write,
    answer,
    limit_in,
    query_of,
    route,
)
from spotledger.ledger.ledger import Ledger
from spotledger.ledger.writer import Writer
from spotledger.ops.access_key_writes import AccessKeyWrites
from spotledger.security.access_keys import (
    AccessKeyRecord,
    KeyRing,
    checked_addresses,
    checked_label,
    checked_permissions,
)
from spotledger.security.tokens import TokenRecord, Tokens, checked_scopes, fingerprint_of


class KeyCalls:
    """The calls about access keys and tokens."""

    def __init__(self, ledger: Ledger, writer: Writer, key_ring: KeyRing, tokens: Tokens, writes: AccessKeyWrites):
        self._ledger = ledger
        self._writer = writer
        self._key_ring = key_ring
        self._tokens = tokens
        self._writes = writes

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes."""
        keys = Call(KEYS_WRITE, self.keys, gives=KeysAnswer, query=("customer", "after", "limit"))
        create = Call(KEYS_WRITE, write=self.create, takes=KeyBody, gives=KeyMadeAnswer)
        rotate = Call(KEYS_WRITE, write=self.rotate, takes=RotateBody, gives=KeyMadeAnswer)
        tokens = Call(ADMIN, self.tokens, gives=TokensAnswer, query=("after", "limit"))
        create_token = Call(ADMIN, write=self.create_token, takes=TokenBody, gives=TokenMadeAnswer)
        return [
            route(token_check, paths.ACCESS_KEYS, GET=keys, POST=create),
            route(token_check, paths.ACCESS_KEY, DELETE=Call(KEYS_WRITE, self.revoke, gives=KeyAnswer)),
            route(token_check, paths.ACCESS_KEY_ROTATION, POST=rotate),
            route(token_check, paths.TOKENS, GET=tokens, POST=create_token),
            route(token_check, paths.TOKEN, DELETE=Call(ADMIN, self.revoke_token, gives=TokenAnswer)),
        ]

    async def create(self, call: Write) -> Reply:
        """Make an access key for a customer."""
        body = decode(call.body, KeyBody)
        customer = check_customer(body.customer)
        request = {
            "op": "create_key",
            "customer": customer,
            "permissions": list(checked_permissions(body.permissions)),
            "label": checked_label(body.label),
            "addresses": list(checked_addresses(body.addresses)),
            "expires_ms": body.expires_ms,
        }

        def make() -> dict[str, Any]:
            if not self._ledger.has_customer(customer):
                raise UnknownCustomer(
                    f"customer {customer} is not registered; a registered one would pass", field="customer"
                )
            made = self._key_ring.create(customer, body.permissions, body.label, body.addresses, body.expires_ms)
            return self._made(*made)

        return await self._once(call.key, request, make)

    async def rotate(self, call: Write) -> Reply:
        """Revoke an access key and make another with the same properties."""
        decode(call.body or b"{}", RotateBody)
        accesskey = call.request.parameters["accesskey"]

        def make() -> dict[str, Any]:
            try:
                made = self._key_ring.rotate(accesskey)
            except AccessKeyUnknown:
                raise _no_key() from None
            except AccessKeyRevoked:
                raise InvalidRequest(
                    "The access key is already revoked; one in use would pass.", field="accesskey"
                ) from None
            return {**self._made(*made), "replaces": accesskey}

        return await self._once(call.key, {"op": "rotate_key", "accesskey": accesskey}, make)

    async def create_token(self, call: Write) -> Reply:
        """Make an operator token."""
        body = decode(call.body, TokenBody)
        request = {
            "op": "create_token",
            "scopes": list(checked_scopes(body.scopes)),
            "label": checked_label(body.label),
            "addresses": list(checked_addresses(body.addresses)),
            "expires_ms": body.expires_ms,
        }

        def make() -> dict[str, Any]:
            made, token = self._tokens.create(body.scopes, body.label, body.addresses, body.expires_ms)
            shown = {name: getattr(made, name) for name in TokenMadeAnswer.__struct_fields__ if name != "token"}
            return {**shown, "token": token}

        return await self._once(call.key, request, make)

    async def _once(self, key: str, request: dict[str, Any], make: Callable[[], dict[str, Any]]) -> Reply:
        once = await self._writer.beside(lambda: self._writes.once(key, request, make))
        return answer(once.answer, replayed=once.replayed)

    async def keys(self, request: Request) -> Reply:
        """List access keys, of one customer or of all, a page at a time, without their secrets."""
        query = query_of(request, "customer", "after", "limit")
        limit = limit_in(query)
        customer = check_customer(query["customer"]) if "customer" in query else None
        found = self._key_ring.list(customer, query.get("after", ""), limit)
        following = found[-1].accesskey if len(found) == limit else None
        return answer(KeysAnswer([self._key_answer(record) for record in found], following))

    async def revoke(self, request: Request) -> Reply:
        """Revoke an access key, at once and for ever; revoking it again changes nothing."""
        query_of(request)
        accesskey = request.parameters["accesskey"]
        try:
            await self._writer.beside(lambda: self._key_ring.revoke(accesskey))
        except AccessKeyUnknown:
            raise _no_key() from None
        return answer(self._key_answer(self._record(accesskey)))

    async def tokens(self, request: Request) -> Reply:
        """List operator tokens, revoked ones too, a page at a time, without the tokens themselves."""
        query = query_of(request, "after", "limit")
        limit = limit_in(query)
        found = self._tokens.list(query.get("after", ""), limit)
        following = found[-1].token_id if len(found) == limit else None
        return answer(TokensAnswer([self._token_answer(record) for record in found], following))

    async def revoke_token(self, request: Request) -> Reply:
        """
        Revoke an operator token, at once and for ever; revoking it again changes nothing.

        It may be the token of this very call, but not the last one in use with the scope ``admin``.
        """
        query_of(request)
        token_id = request.parameters["token_id"]
        return answer(self._token_answer(await self._writer.beside(lambda: self._tokens.revoke(token_id))))

    def _record(self, accesskey: str) -> AccessKeyRecord:
        record = self._key_ring.get(accesskey)
        if record is None:
            raise _no_key()
        return record

    def _made(self, accesskey: str, secretkey: str) -> dict[str, Any]:
        made = msgspec.to_builtins(self._key_answer(self._record(accesskey)))
        return {"accesskey": accesskey, "secretkey": secretkey, **made}

    def _key_answer(self, record: AccessKeyRecord) -> KeyAnswer:
        found = msgspec.convert(record, KeyAnswer, from_attributes=True)
        found.last_used_ms = self._key_ring.used.get(record.accesskey, record.last_used_ms)
        return found

    def _token_answer(self, record: TokenRecord) -> TokenAnswer:
        return TokenAnswer(
            record.token_id,
            fingerprint_of(record),
            list(record.scopes),
            record.label,
            list(record.addresses),
            record.created_ms,
            record.expires_ms,
            record.revoked_ms,
            self._tokens.used.get(record.token_id, record.last_used_ms),
        )


def _no_key() -> NotFound:
    return NotFound("There is no such access key.")
