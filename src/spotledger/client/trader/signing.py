"""Who signs, when, and how: the credentials, the nonces, and the signature of the v1 API."""

from __future__ import annotations

import hmac
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

#: Names that the signing itself fills in, compared without case.
OWN_NAMES = frozenset({"accesskey", "nonce", "signature"})

_NAME = re.compile(r"\A[A-Za-z0-9._-]{1,64}\Z")
_CREDENTIAL = re.compile(r"\A[\x21-\x25\x27-\x7e]{1,256}\Z")
_NONCE_DIGITS = 13
_NONCE_END = 10**_NONCE_DIGITS
_SHOWN_OF_ACCESSKEY = 4


@dataclass(frozen=True, slots=True)
class Credentials:
    """One access key and its secret; neither ``repr`` nor any message shows the secret."""

    accesskey: str
    secretkey: str = field(repr=False)

    def __post_init__(self) -> None:
        for name in ("accesskey", "secretkey"):
            value = getattr(self, name)
            if not isinstance(value, str) or not _CREDENTIAL.match(value):
                raise ValueError(f"{name} must be 1 to 256 printable ASCII characters, no blank, no '&'")

    def __repr__(self) -> str:
        return f"Credentials({self.masked!r})"

    @property
    def masked(self) -> str:
        """Enough of the access key to tell it from others, and no more."""
        return self.accesskey[:_SHOWN_OF_ACCESSKEY] + "…" if len(self.accesskey) > 2 * _SHOWN_OF_ACCESSKEY else "…"


class NonceClock:
    """
    Give nonces: the server's time in milliseconds as far as it is known, each later than the one before.

    Any number of threads may ask. That nonces grow is more than the API demands; it keeps two calls of one
    millisecond apart where the server takes each signed request only once.
    """

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        """Start with the time of this machine, *clock_ms*, uncorrected."""
        self._clock_ms = clock_ms
        self._guard = threading.Lock()
        self._offset_ms = 0
        self._last_ms = 0

    @property
    def offset_ms(self) -> int:
        """How far the server is ahead of this machine."""
        return self._offset_ms

    def local_ms(self) -> int:
        """Read this machine's clock."""
        return self._clock_ms()

    def correct(self, offset_ms: int) -> None:
        """From now on take the server to be *offset_ms* ahead of this machine."""
        with self._guard:
            self._offset_ms = offset_ms
            self._last_ms = 0  # what was given by the wrong clock must not hold the right one up

    def nonce(self) -> str:
        """Give the next nonce, thirteen digits."""
        with self._guard:
            now_ms = max(self._clock_ms() + self._offset_ms, self._last_ms + 1)
            self._last_ms = min(now_ms, _NONCE_END - 1)
            return f"{self._last_ms:0{_NONCE_DIGITS}d}"


def signature(params: Mapping[str, str], secretkey: str) -> str:
    """
    Sign *params*: HMAC-SHA256 of ``name=value`` pairs joined with ``&``, in lower-case hex.

    The pairs are sorted by name in byte order; ``signature`` itself and blank values take no part. Names and values
    are signed as they read, before any percent-encoding. *params* is only read.
    """
    names = sorted((name for name, value in params.items() if value and name != "signature"), key=str.encode)
    text = "&".join(f"{name}={params[name]}" for name in names)
    return hmac.new(secretkey.encode(), text.encode(), "sha256").hexdigest()


def clean_params(params: Mapping[str, str | int]) -> dict[str, str]:
    """
    Copy *params* as the text that is signed and sent; the caller's mapping is neither kept nor changed.

    Raises:
        ValueError: A name is none, or one that the signing fills in; a value is blank or holds a ``&``.
        TypeError: A value is neither text nor int.
    """
    cleaned = {}
    for name, value in params.items():
        if not _NAME.match(name) or name.lower() in OWN_NAMES:
            raise ValueError(f"parameter {name!r}: 1 to 64 of A-Z a-z 0-9 . _ -, and not {sorted(OWN_NAMES)}")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise TypeError(f"parameter {name!r} must be text or int, not {type(value).__name__}")
        cleaned[name] = str(value)
        if not cleaned[name] or "&" in cleaned[name]:
            raise ValueError(f"the value of parameter {name!r} must not be blank nor hold '&'")
    return cleaned


def signed_params(params: Mapping[str, str], credentials: Credentials, nonce: str) -> tuple[tuple[str, str], ...]:
    """Give *params* with ``accesskey``, ``nonce`` and ``signature``, ready to be sent in this order."""
    filled = {**params, "accesskey": credentials.accesskey, "nonce": nonce}
    return (*sorted(filled.items()), ("signature", signature(filled, credentials.secretkey)))
