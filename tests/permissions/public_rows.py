"""The calls of the public listener, and the credentials that they are tried with."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from spotledger import errors, paths
from spotledger.http import wire
from spotledger.http.public import v4
from spotledger.http.public.answers import Answer
from spotledger.security.access_keys import PERMISSIONS
from spotledger.security.tokens import Tokens
from support_public import NONCE, SECRET, Service, document, signed_query

PASSES: Final = "✓"
#: How a call takes a credential: not at all; as signed parameters, which it needs or which it checks if it is given
#: any; or as headers of the v4 API.
Takes = Literal["nothing", "parameters", "parameters, if any", "headers"]
#: How a request is sent: with a query, with a form as its body, or to the path with a slash at its end.
Way = Literal["query", "form", "slash"]

OPERATOR_TOKEN: Final = "7f" * 32


class Row(NamedTuple):
    """One call: its path, how it takes a credential, the permission that it needs, and more parameters."""

    path: str
    takes: Takes
    needs: str = "read"
    more: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return self.path

    @property
    def ways(self) -> tuple[Way, ...]:
        """How the call can be sent; one with a signature in its headers has no body."""
        return ("query", "slash") if self.takes == "headers" else ("query", "slash", "form")


ROWS: Final = (
    Row(paths.GET_BALANCE, "parameters"),
    Row(paths.GET_FUNDS, "parameters", more=(("account", "2"),)),
    Row(paths.GET_ACCOUNTS, "parameters, if any"),
    Row(paths.GET_SERVER_TIME, "nothing"),
    Row(paths.V4_BALANCES, "headers"),
    Row(paths.V4_TIME, "nothing"),
    Row(paths.V4_SYMBOLS, "nothing"),
    Row(paths.V4_CURRENCIES, "nothing"),
    Row(paths.V4_CHAINS, "nothing"),
    Row(paths.V4_CONTRACTS, "nothing"),
    Row(paths.HEALTHZ, "nothing"),
    Row(paths.READYZ, "nothing"),
    Row(paths.READYZ_READS, "nothing"),
)


@dataclass(frozen=True, slots=True)
class Credential:
    """
    A credential.

    Args:
        name: The head of its column.
        about: What it is, for the page.
        accesskey: What is sent as access key; None: nothing is.
        secret: What signs.
        refused: Why it is refused; None: it is an access key in use.
        permission: The one permission of an access key in use.
        token: Whether an operator token is sent along as one.
    """

    name: str
    about: str
    accesskey: str | None
    secret: str = SECRET
    refused: type[errors.SpotledgerError] | None = None
    permission: str = ""
    token: bool = False

    def expected(self, row: Row) -> str:
        """Return what *row* answers: that it passes, or the code of the refusal as its API has it."""
        if row.takes == "nothing" or (row.takes == "parameters, if any" and self.accesskey is None):
            return PASSES
        refused = self.refused if self.permission != row.needs else None
        return PASSES if refused is None else code_of(refused, is_v4=row.takes == "headers")

    def ask(self, service: Service, row: Row, way: Way = "query") -> Answer:
        """Send the call of *row* with this credential."""
        path = f"{row.path}/" if way == "slash" else row.path
        headers = [("Authorization", f"Bearer {OPERATOR_TOKEN}")] if self.token else []
        parameters = dict(row.more)
        if self.accesskey is not None and row.takes == "headers":
            headers += _v4_headers(self.accesskey, self.secret, path)
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        if self.accesskey is not None and row.takes != "headers":
            query = signed_query({"accesskey": self.accesskey, **parameters}, secret=self.secret)
        if way != "form":
            return service.ask(query, path, headers=headers)
        headers.append(("Content-Type", "application/x-www-form-urlencoded"))
        return service.ask("", path, method="POST", headers=headers, body=query.encode())


def code_of(refused: type[errors.SpotledgerError], *, is_v4: bool) -> str:
    """Return the code of a refusal: a number in the v1 API, a text in the v4 API."""
    if is_v4:
        return "AUTH_001" if refused is errors.MalformedRequest else v4.CODES[refused]
    return str(wire.row_of(refused).v1_code)


def cell(answer: Answer, row: Row) -> str:
    """Return what an answer is as a cell of the table."""
    found = document(answer)
    if answer.status == 200 and (row.takes == "nothing" or found.get("code") == 200 or found.get("rc") == 0):
        return PASSES
    return str(found["mc"] if "mc" in found else found["code"])


def _v4_headers(accesskey: str, secret: str, path: str) -> list[tuple[str, str]]:
    named = {"algorithms": "HmacSHA256", "appkey": accesskey, "recvwindow": "5000", "timestamp": str(NONCE)}
    text = "&".join(f"xt-validate-{name}={named[name]}" for name in sorted(named)) + f"#GET#{path}"
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return [(f"xt-validate-{name}", value) for name, value in {**named, "signature": signature}.items()]


def _key(number: int) -> str:
    return f"{number:08d}-2222-4333-8444-555555555555"


#: Access keys by what is special about them, and by their one permission.
IN_USE, REVOKED, EXPIRED, ELSEWHERE = map(_key, range(1, 5))
OF_PERMISSION: Final = {permission: _key(10 + number) for number, permission in enumerate(PERMISSIONS)}

_MISSING: Final = errors.MalformedRequest
_UNKNOWN: Final = errors.AccessKeyUnknown
_ONE_PERMISSION: Final = "an access key with this permission and no other"
CREDENTIALS: Final = (
    Credential("none", "neither access key nor signature", None, refused=_MISSING),
    Credential("unknown", "an access key that was never issued", _key(99), refused=_UNKNOWN),
    Credential("revoked", "an access key that was revoked", REVOKED, refused=errors.AccessKeyRevoked),
    Credential("expired", "an access key that has expired", EXPIRED, refused=errors.AccessKeyExpired),
    Credential("address", "an access key bound to another address", ELSEWHERE, refused=errors.AddressNotAllowed),
    Credential("signature", "an access key, signed with another secret", IN_USE, "f" * 64, errors.SignatureRefused),
    Credential("token", "an operator token in use, as one", None, refused=_MISSING, token=True),
    Credential("token as key", "an operator token in use, as access key", OPERATOR_TOKEN, refused=_UNKNOWN),
    *(Credential(it, _ONE_PERMISSION, key, SECRET, errors.PermissionMissing, it) for it, key in OF_PERMISSION.items()),
)


def issue_keys(service: Service, customer: str) -> None:
    """Store the access keys for *customer*, and the operator token, which is in use and has every scope."""
    for key, more in {
        IN_USE: {},
        REVOKED: {"revoked_ms": 1},
        EXPIRED: {"expires_ms": NONCE},
        ELSEWHERE: {"addresses": ("198.51.100.0/24",)},
    }.items():
        service.add_key(key, customer=customer, permissions=PERMISSIONS, **more)
    for permission, key in OF_PERMISSION.items():
        service.add_key(key, customer=customer, permissions=(permission,))
    Tokens(service.tables.tokens, service.clock).create(["admin"], token=OPERATOR_TOKEN)
