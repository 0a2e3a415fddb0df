"""
The text that a trader signs, and its HMAC (rules R5, R6 and R9 of the v1 wire).

The text is the parameters without ``signature``, sorted by name in byte order, as ``name=value`` joined with ``&``.
Some clients sign the values as they are, others form-encode them first, so both texts are tried if they differ.

Two different requests never have a text in common. The characters that the encoded form is made of, ``&``, ``%`` and
``+``, mean the same in both forms: no decoded name or value has ``&`` or ``%``, and where one has a blank, which would
be encoded as ``+``, only the raw text counts.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import quote_plus

if TYPE_CHECKING:
    from hashlib import _Hash

SIGNATURE_PATTERN = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
#: What a decoded name and a decoded value may be, so that no other request signs to the same text (rule R6).
SIGNABLE_NAME = re.compile(r"[^&%=]+")
SIGNABLE_VALUE = re.compile(r"[^&%]+")

_BLOCK_BYTES = 64
_INNER_PAD = bytes(byte ^ 0x36 for byte in range(256))
_OUTER_PAD = bytes(byte ^ 0x5C for byte in range(256))
_PLAIN = re.compile(r"[A-Za-z0-9._=&-]*", re.ASCII)


class PreparedSecret:
    """
    A secret as the two SHA-256 states that each HMAC with it begins with.

    Hashing the padded secret each time would double the cost of a signature.
    """

    __slots__ = ("_inner", "_outer")

    _inner: _Hash
    _outer: _Hash

    def __init__(self, secret: str) -> None:
        """Prepare *secret*; the key of the HMAC is its UTF-8 text."""
        key = secret.encode()
        if len(key) > _BLOCK_BYTES:
            key = hashlib.sha256(key).digest()
        key = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(key.translate(_INNER_PAD))
        self._outer = hashlib.sha256(key.translate(_OUTER_PAD))

    def __repr__(self) -> str:
        return "PreparedSecret(…)"

    def sign(self, text: bytes) -> bytes:
        """Return the HMAC-SHA256 of *text*, 32 bytes."""
        inner = self._inner.copy()
        inner.update(text)
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.digest()


#: Used for an unknown access key, so that refusing it takes as long as refusing a wrong signature.
UNKNOWN_SECRET = PreparedSecret(secrets.token_hex(32))


def texts_to_sign(pairs: Iterable[tuple[str, str]]) -> tuple[bytes, ...]:
    """
    Return the one or two texts that a signature of *pairs* may cover.

    Args:
        pairs: Names and values, decoded, without ``signature`` and without blank values. They fit `SIGNABLE_NAME` and
            `SIGNABLE_VALUE`; otherwise two requests could have the same text.

    Returns:
        The raw text; and the form-encoded text, if encoding changes a character and no name or value has a blank.
    """
    ordered = sorted(pairs, key=_name_bytes)
    raw = "&".join([f"{name}={value}" for name, value in ordered])
    # Encoding keeps only the = between a name and its value, of which each pair has one.
    if _PLAIN.fullmatch(raw) and raw.count("=") == len(ordered):
        return (raw.encode(),)
    if " " in raw:  # form-encoded it would be the raw text of a request with + in its place
        return (raw.encode(),)
    encoded = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in ordered)
    return (raw.encode(), encoded.encode())


def _name_bytes(pair: tuple[str, str]) -> bytes:
    return pair[0].encode()
