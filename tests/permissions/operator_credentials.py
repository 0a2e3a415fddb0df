"""
What a caller of the operator listener may send as a credential.

Each scope has a column of its own, so that a scope that is added to `SCOPES` is tried at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from permissions.operator_rows import ADMIN, NO_TOKEN, ROWS, Row
from permissions.world import World
from spotledger.errors import ScopeMissing, TokenRefused
from spotledger.security.tokens import SCOPES

PASSES: Final = "✓"

Headers = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Credential:
    """
    A credential.

    Args:
        name: The head of its column.
        about: What it is, for the page.
        make: Makes it and returns the headers that carry it.
        scopes: The scopes of a token that is in use; none: it is refused wherever a token is needed.
    """

    name: str
    about: str
    make: Callable[[World], Headers]
    scopes: tuple[str, ...] = ()

    def expected(self, row: Row) -> str:
        """Return what *row* answers to this credential: that it passes, or the code of the refusal."""
        if row.needs == NO_TOKEN or ADMIN in self.scopes or row.scopes <= set(self.scopes):
            return PASSES
        return ScopeMissing.code if self.scopes else TokenRefused.code


def bearer(token: str) -> Headers:
    """Return *token* as it is sent."""
    return {"Authorization": f"Bearer {token}"}


def _revoked(world: World) -> Headers:
    made = world.token(ADMIN)
    assert world.api.delete(f"/v1/tokens/{made['token_id']}").status_code == 200
    return bearer(made["token"])


def _expired(world: World) -> Headers:
    made = world.token(ADMIN, expires_ms=world.api.clock() + 1_000)
    world.api.clock.ahead_ms += 2_000
    return bearer(made["token"])


def _elsewhere(world: World) -> Headers:
    return bearer(world.token(ADMIN, addresses=["192.0.2.1"])["token"])


def _basic(world: World) -> Headers:
    return {"Authorization": f"Basic {world.token(ADMIN)['token']}"}


def _signed(world: World) -> Headers:
    key = world.access_key()
    return {"Authorization": "", "xt-validate-appkey": key["accesskey"], "xt-validate-signature": key["secretkey"]}


def _of_scopes(*scopes: str) -> Credential:
    about = "a token with this scope and no other" if len(scopes) == 1 else "a token with these scopes and no other"
    if ADMIN in scopes:
        about = "a token with every scope"
    return Credential(" + ".join(scopes), about, lambda world: bearer(world.token(*scopes)["token"]), scopes)


#: Refused everywhere but at calls that need no token.
STRANGERS: Final = (
    Credential("none", "no `Authorization` header", lambda world: {}),
    Credential("malformed", "`Authorization: Basic TOKEN`, with an admin token that is in use", _basic),
    Credential("unknown", "64 hex digits that are no token", lambda world: bearer("0f" * 32)),
    Credential("revoked", "an admin token that was revoked", _revoked),
    Credential("expired", "an admin token that has expired", _expired),
    Credential("address", "an admin token bound to another address", _elsewhere),
    Credential("access key", "an access key sent as a token", lambda world: bearer(world.access_key()["accesskey"])),
    Credential("secret", "the secret of an access key sent as a token", lambda w: bearer(w.access_key()["secretkey"])),
    Credential("signature", "an access key and a signature in the headers of the public v4 API", _signed),
)
#: Scopes that a call needs together, in the order of `SCOPES`.
TOGETHER: Final = sorted({tuple(sorted(row.scopes, key=SCOPES.index)) for row in ROWS if row.also})
CREDENTIALS: Final = (*STRANGERS, *map(_of_scopes, SCOPES), *(_of_scopes(*scopes) for scopes in TOGETHER))
