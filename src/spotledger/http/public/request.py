"""
Reading a request of the v1 wire (rules R1 to R6).

Every value is checked by an anchored pattern before it is converted: ``\\d``, ``int()`` and ``$``
each let something through that is no nonce.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from spotledger.errors import MalformedRequest
from spotledger.security.gate import SignedRequest
from spotledger.security.signing import SIGNATURE_PATTERN, texts_to_sign

QUERY_MAX_BYTES = 4096
PARAMETERS_MAX = 32

_NONCE = re.compile(r"[0-9]{13}", re.ASCII)

# What almost every client sends, already in the order that is signed. Anything else takes the long way.
_COMMON = re.compile(
    r"(accesskey=([A-Za-z0-9-]{1,64})(?:&account=([A-Za-z0-9]{1,8}))?&nonce=([0-9]{13}))&signature=([0-9a-fA-F]{64})",
    re.ASCII,
)

_SIGNATURE_EXPECTED = "send the HMAC-SHA256 of the sorted parameters as 64 hex digits"
_NONCE_EXPECTED = "send the time in ms since 1970 as 13 digits"


class Read(NamedTuple):
    """A signed request as it was read: what the gate checks, and the value of ``account`` where one was sent."""

    signed: SignedRequest
    account: str | None


def read_signed(text: str) -> Read:
    """
    Read the parameters of a signed request from *text*, a query or the body of a form.

    Raises:
        MalformedRequest: Rules R1 to R6 do not hold. The message holds no part of *text*.
    """
    match = _COMMON.fullmatch(text)
    if match is None:
        return signed_of(read_parameters(text))
    signed_text, accesskey, account, nonce, signature = match.groups()
    return Read(SignedRequest(accesskey, int(nonce), bytes.fromhex(signature), (signed_text.encode(),)), account)


def read_parameters(text: str) -> dict[str, str]:
    """
    Return the parameters in *text*, decoded, without those of blank value.

    Raises:
        MalformedRequest: More than 4 KiB or 32 parameters, not UTF-8, a name twice (compared without case),
            a parameter without a name, ``&`` in a name or value, or ``=`` in a name.
    """
    try:
        if len(text) > QUERY_MAX_BYTES or len(text.encode()) > QUERY_MAX_BYTES:
            raise MalformedRequest(f"The parameters are longer than {QUERY_MAX_BYTES} bytes.")
        pairs = [pair for part in text.split("&") if part and (pair := _decoded(part))[1]]
    except UnicodeError as error:
        raise MalformedRequest("The parameters are not UTF-8.") from error
    if len(pairs) > PARAMETERS_MAX:
        raise MalformedRequest(f"There are {len(pairs)} parameters; {PARAMETERS_MAX} at most would pass.")
    parameters = dict(pairs)
    if len({name.casefold() for name in parameters}) != len(pairs):
        raise MalformedRequest("A parameter was sent twice; send each once (names are compared without case).")
    for name, value in parameters.items():
        if not name:
            raise MalformedRequest("A parameter has no name.")
        if "&" in name or "=" in name or "&" in value:
            raise MalformedRequest("A name holds & or =, or a value holds &; neither can be signed.")
    return parameters


def _decoded(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return _unquoted(name), _unquoted(value)


def _unquoted(text: str) -> str:
    if "%" not in text and "+" not in text:
        return text
    return unquote_to_bytes(text.replace("+", " ")).decode()


def signed_of(parameters: dict[str, str]) -> Read:
    """
    Return the signed request that *parameters* make up.

    Raises:
        MalformedRequest: Access key, nonce or signature is missing or of the wrong form.
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
    return "missing" if value is None else "of the wrong form"
