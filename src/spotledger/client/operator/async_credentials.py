"""The calls of the operator client about access keys, operator tokens and locks, for asyncio."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

from spotledger import paths
from spotledger.client.operator.key_answers import AccessKey, KeyPage, MadeKey, MadeToken, OperatorToken, TokenPage
from spotledger.client.operator.messages import path_of
from spotledger.client.operator.operation import texts_of
from spotledger.client.operator.service_answers import AccessPage, GateLock, GateLocks, MasterKeyInForce

T = TypeVar("T")


class AsyncCredentialCalls(ABC):
    """The calls about credentials; `AsyncOperatorLedger` has them beside those about money."""

    @abstractmethod
    async def _ask(self, kind: type[T], method: str, path: str, **more: Any) -> T:
        """Make a call, and return its answer as *kind*."""

    @abstractmethod
    async def _get(self, kind: type[T], path: str, /, **params: str | int | None) -> T:
        """Make a call that reads, and return its answer as *kind*."""

    # --- access keys --------------------------------------------------------------------------------

    async def keys(self, customer: str | None = None, after: str | None = None, limit: int | None = None) -> KeyPage:
        """Return a page of the access keys of *customer*, or of all customers; revoked ones too, no secrets."""
        return await self._get(KeyPage, paths.ACCESS_KEYS, customer=customer, after=after, limit=limit)

    async def create_key(
        self,
        customer: str,
        permissions: Sequence[str],
        label: str = "",
        addresses: Sequence[str] = (),
        expires_ms: int | None = None,
        *,
        key: str,
    ) -> MadeKey:
        """
        Make an access key for *customer*.

        Args:
            customer: A registered customer.
            permissions: One or more of ``read``, ``trade`` and ``withdraw``.
            label: A line of up to 100 characters.
            addresses: The addresses or networks (``10.1.0.0/16``) that it may be used from; empty for any.
            expires_ms: When it stops working, in ms since 1970, in the future; None for never.
            key: The idempotency key of this write, not an access key.

        Returns:
            The access key with its secret. The answer to a repeat has no secret, also if the client itself sent the
            call again because the first answer was lost. Rotate the access key then.

        Raises:
            UnknownCustomer: *customer* is not registered.
            InvalidRequest: An argument is not as above; ``field`` in the details names it.
        """
        body = {
            "customer": customer,
            "permissions": texts_of(permissions, "permissions"),
            "label": label,
            "addresses": texts_of(addresses, "addresses"),
            "expires_ms": expires_ms,
        }
        return await self._ask(MadeKey, "POST", paths.ACCESS_KEYS, body=body, key=key)

    async def rotate_key(self, accesskey: str, *, key: str) -> MadeKey:
        """
        Revoke *accesskey* and make another with the same customer, permissions, label, addresses and expiry.

        The answer to a repeat has no secret.

        Raises:
            NotFound: There is no such access key.
            InvalidRequest: It is already revoked; nothing is made.
        """
        path = path_of(paths.ACCESS_KEY_ROTATION, accesskey=accesskey)
        return await self._ask(MadeKey, "POST", path, body={}, key=key)

    async def revoke_key(self, accesskey: str) -> AccessKey:
        """
        Revoke *accesskey*, at once and for ever. Revoking it again changes nothing.

        Raises:
            NotFound: There is no such access key.
        """
        return await self._ask(AccessKey, "DELETE", path_of(paths.ACCESS_KEY, accesskey=accesskey))

    # --- operator tokens ----------------------------------------------------------------------------

    async def tokens(self, after: str | None = None, limit: int | None = None) -> TokenPage:
        """Return a page of the operator tokens, revoked ones too."""
        return await self._get(TokenPage, paths.TOKENS, after=after, limit=limit)

    async def create_token(
        self,
        scopes: Sequence[str],
        label: str = "",
        addresses: Sequence[str] = (),
        expires_ms: int | None = None,
        *,
        key: str,
    ) -> MadeToken:
        """
        Make an operator token.

        Args:
            scopes: One or more of ``ledger:read``, ``ledger:write``, ``ledger:control``, ``keys:write``,
                ``metrics:read`` and ``admin``, which includes all others.
            label: A line of up to 100 characters.
            addresses: The addresses or networks (``10.1.0.0/16``) that it may be used from; empty for any.
            expires_ms: When it stops working, in ms since 1970, in the future; None for never.
            key: The idempotency key of this write.

        Returns:
            The token. The answer to a repeat has none.

        Raises:
            InvalidRequest: An argument is not as above; ``field`` in the details names it.
        """
        body = {
            "scopes": texts_of(scopes, "scopes"),
            "label": label,
            "addresses": texts_of(addresses, "addresses"),
            "expires_ms": expires_ms,
        }
        return await self._ask(MadeToken, "POST", paths.TOKENS, body=body, key=key)

    async def revoke_token(self, token_id: str) -> OperatorToken:
        """
        Revoke a token, at once and for ever. It may be the token of this client.

        Raises:
            NotFound: There is no such token.
            LastAdminToken: It is in use, and no other token with the scope ``admin`` is good for more than a day.
        """
        return await self._ask(OperatorToken, "DELETE", path_of(paths.TOKEN, token_id=token_id))

    # --- the master key -----------------------------------------------------------------------------

    async def master_key(self) -> MasterKeyInForce:
        """Return which master key is in force, and in a fleet which keys each node holds; never a key."""
        return await self._get(MasterKeyInForce, paths.MASTER_KEY)

    async def rotate_master_key(self, fingerprint: str | None = None) -> MasterKeyInForce:
        """
        Bring the next master key into force, and seal every secret with it; access keys work on meanwhile.

        Args:
            fingerprint: That of the key, if the service has several or makes none itself. Without it the call is sent
                once.

        Raises:
            RotationRefused: There is no such key, a node does not hold it, or a secret does not open.
        """
        body = {} if fingerprint is None else {"fingerprint": fingerprint}
        attempts = 1 if fingerprint is None else None
        return await self._ask(MasterKeyInForce, "POST", paths.MASTER_KEY_ROTATION, body=body, attempts=attempts)

    # --- locks --------------------------------------------------------------------------------------

    async def locks(self) -> GateLocks:
        """Return the locks on customers and addresses that sent too many requests to the public listener."""
        return await self._get(GateLocks, paths.LOCKS)

    async def lift_lock(self, name: str) -> GateLock:
        """
        Lift a lock by its name, on every worker, and with Redis on every node.

        Raises:
            NotFound: There is no such lock now, or it was lifted by this very call, sent before.
            StoreUnavailable: It cannot be lifted for good now.
        """
        return await self._ask(GateLock, "DELETE", path_of(paths.LOCK, name=name))

    # --- the access log -----------------------------------------------------------------------------

    async def access_log(
        self,
        actor: str | None = None,
        address: str | None = None,
        from_ms: int | None = None,
        to_ms: int | None = None,
        after: str | None = None,
        limit: int | None = None,
    ) -> AccessPage:
        """
        Return a page of the access log of this node: who used which credential from where, summed by minute.

        Args:
            actor: Only lines of ``token:ID`` or ``key:`` and the first characters of an access key; ``""`` for lines
                without a known credential.
            address: Only lines from this address; an IPv6 address stands for its /64.
            from_ms: Only lines from this minute on, in ms since 1970.
            to_ms: Only lines of minutes that began before, in ms since 1970.
            after: The ``next`` of the page before.
            limit: The maximum length of the page; 1,000 at most.

        Raises:
            InvalidRequest: An argument is not as above; ``field`` names it.
            Unavailable: The log cannot be read.
        """
        given = {"actor": actor, "address": address, "from_ms": from_ms, "to_ms": to_ms}
        return await self._get(AccessPage, paths.ACCESS_LOG, **given, after=after, limit=limit)
