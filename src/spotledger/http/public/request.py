"""
A request of the public listener, and reading its parameters (rules R1 to R6).

Every value is checked by an anchored pattern before it is converted: ``\\d``, ``int()`` and ``$`` each accept text that
is not a nonce.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias
from urllib.parse import unquote_to_bytes

from spotledger.errors import MalformedRequest
from spotledger.security.gate import SignedRequest
from spotledger.security.signing import SIGNABLE_NAME, SIGNABLE_VALUE, SIGNATURE_PATTERN, texts_to_sign

QUERY_MAX_BYTES = 4096
PARAMETERS_MAX = 32

#: The body of a request, or why it was not read.
RequestBody: TypeAlias = bytes | MalformedRequest

_NONCE = re.compile(r"[0-9]{13}", re.ASCII)

# What nearly every client sends, in the order in which it is signed. Anything else is read parameter by parameter.
_COMMON = re.compile(
    r"(accesskey=([A-Za-z0-9-]{1,64})(?:&account=([A-Za-z0-9]{1,8}))?&nonce=([0-9]{13}))&signature=([0-9a-fA-F]{64})",
    re.ASCII,
)

_SIGNATURE_EXPECTED = "send the HMAC-SHA256 of the sorted parameters as 64 hex digits"
_NONCE_EXPECTED = "send the time in ms since 1970 as 13 digits"


class RequestHeaders(Protocol):
    """The headers of a request; names are given in lower case."""

    def get(self, key: str, /) -> str | None:
        """Return the value of the header, or None."""

    def get_all(self, key: str, /) -> list[str]:
        """Return all values of the header."""


@dataclass(slots=True)
class Request:
    """One request, and when it arrived."""

    method: str
    #: Percent-decoded.
    path: str
    #: As sent, without the question mark.
    query: str
    headers: RequestHeaders
    #: ``host:port`` of the peer.
    connection: str
    body: RequestBody
    now_ms: int
    request_id: str
    #: The access key that it names, once the gate is asked to admit it.
    accesskey: str | None = None

    def forwarded_for(self) -> list[str]:
        """Return the values of all X-Forwarded-For headers."""
        return self.headers.get_all("x-forwarded-for")


class Read(NamedTuple):
    """A signed request: what the gate checks, and the value of ``account``, or None if it was not sent."""

    signed: SignedRequest
    account: str | None


def parameters_text(request: Request) -> str:
    """
    Return the text that holds the parameters: the query of a GET, the body of a POST (rule R1).

    Raises:
        MalformedRequest: Both hold parameters, or the body cannot be read.
    """
    if request.method == "GET" and not request.body:
        return request.query
    if isinstance(request.body, MalformedRequest):
        raise request.body
    try:
        body = request.body.decode()
    except UnicodeDecodeError as error:
        raise MalformedRequest("The body is not UTF-8; a form in UTF-8 would pass.") from error
    text, other = (request.query, body) if request.method == "GET" else (body, request.query)
    if read_parameters(other):
        raise MalformedRequest("A GET has its parameters in the query, a POST in a form body, and neither in both.")
    return text


def read_signed(text: str) -> Read:
    """
    Read a signed request from *text*, a query or a form body.

    Raises:
        MalformedRequest: Rules R1 to R6 do not hold. The message contains no part of *text*.
    """
    match = _COMMON.fullmatch(text)
    if match is None:
        return signed_of(read_parameters(text))
    signed_text, accesskey, account, nonce, signature = match.groups()
    return Read(SignedRequest(accesskey, int(nonce), bytes.fromhex(signature), (signed_text.encode(),)), account)


def read_parameters(text: str) -> dict[str, str]:
    """
    Return the parameters in *text*, decoded, without those with a blank value.

    Raises:
        MalformedRequest: More than 4 KiB or 32 parameters, not UTF-8, a name twice (compared without case),
            a parameter without a name, ``&`` or ``%`` in a decoded name or value, or ``=`` in a name (rule R6).
    """
    pairs = _pairs_in(text)
    if len(pairs) > PARAMETERS_MAX:
        raise MalformedRequest(f"There are {len(pairs)} parameters; {PARAMETERS_MAX} at most would pass.")
    parameters = dict(pairs)
    if len({name.casefold() for name in parameters}) != len(pairs):
        raise MalformedRequest("A parameter was sent twice; send each once (names are compared without case).")
    for name, value in parameters.items():
        if not name:
            raise MalformedRequest("A parameter has no name; name=value would pass.")
        if not SIGNABLE_NAME.fullmatch(name):
            raise MalformedRequest("A decoded name contains &, % or =, which cannot be signed; one without would pass.")
        if not SIGNABLE_VALUE.fullmatch(value):
            raise MalformedRequest("A decoded value contains & or %, which cannot be signed; one without would pass.")
    return parameters


def _pairs_in(text: str) -> list[tuple[str, str]]:
    """Return the decoded names and values in *text*, in order, without those with a blank value."""
    try:
        if len(text) > QUERY_MAX_BYTES or len(text.encode()) > QUERY_MAX_BYTES:
            raise MalformedRequest(f"The parameters are longer than {QUERY_MAX_BYTES} bytes; that many would pass.")
        return [pair for part in text.split("&") if part and (pair := _decoded(part))[1]]
    except UnicodeError as error:
        raise MalformedRequest("The parameters are not UTF-8; percent-encoded UTF-8 would pass.") from error


def _decoded(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return _unquoted(name), _unquoted(value)


def _unquoted(text: str) -> str:
    if "%" not in text and "+" not in text:
        return text
    return unquote_to_bytes(text.replace("+", " ")).decode()


def signed_of(parameters: dict[str, str]) -> Read:
    """
    Return the signed request in *parameters*.

    Raises:
        MalformedRequest: Access key, nonce or signature is missing or malformed.
    """
    accesskey = parameters.get("accesskey") or parameters.get("accessKey")
    nonce = parameters.get("nonce")
    signature = parameters.get("signature")
    if accesskey is None:
        raise MalformedRequest("accesskey is missing; send it as accesskey or accessKey.")
    if nonce is None or not _NONCE.fullmatch(nonce):
        raise MalformedRequest(f"nonce is {_state(nonce)}; {_NONCE_EXPECTED}.")
    if signature is None or not SIGNATURE_PATTERN.fullmatch(signature):
        raise MalformedRequest(f"signature is {_state(signature)}; {_SIGNATURE_EXPECTED}.")
    texts = texts_to_sign((name, value) for name, value in parameters.items() if name != "signature")
    return Read(SignedRequest(accesskey, int(nonce), bytes.fromhex(signature), texts), parameters.get("account"))


def _state(value: str | None) -> str:
    return "missing" if value is None else "malformed"
