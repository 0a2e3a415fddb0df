"""Sign requests of the v1 API: credentials, nonces, and the signature."""

from __future__ import annotations

import hmac
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

#: Names that signing fills in itself; compared without case.
OWN_NAMES = frozenset({"accesskey", "nonce", "signature"})

_NAME = re.compile(r"\A[A-Za-z0-9._-]{1,64}\Z")
_CREDENTIAL = re.compile(r"\A[\x21-\x25\x27-\x7e]{1,256}\Z")
#: What cannot be signed in a value (rule R6).
_NOT_SIGNABLE = re.compile("[&%]")
#: How many parameters a server takes, and how long they may be together, encoded.
PARAMETERS_MAX = 32
QUERY_MAX_BYTES = 4096
_NONCE_DIGITS = 13
_NONCE_END = 10**_NONCE_DIGITS
_SHOWN_OF_ACCESSKEY = 4
#: The most that a server lets a nonce be ahead of its time.
_AHEAD_MAX_MS = 60_000


@dataclass(frozen=True, slots=True)
class Credentials:
    """One access key and its secret. Neither ``repr`` nor any message shows the secret."""

    accesskey: str
    secretkey: str = field(repr=False)

    def __post_init__(self) -> None:
        for name in ("accesskey", "secretkey"):
            value = getattr(self, name)
            if not isinstance(value, str) or not _CREDENTIAL.match(value):
                raise ValueError(f"{name} must be 1 to 256 printable ASCII characters, no blank, no '&'")
        if "%" in self.accesskey:
            raise ValueError("accesskey contains '%', which cannot be signed; an access key is a UUID")

    def __repr__(self) -> str:
        return f"Credentials({self.masked!r})"

    @property
    def masked(self) -> str:
        """The first characters of the access key, enough to tell it from others."""
        return self.accesskey[:_SHOWN_OF_ACCESSKEY] + "…" if len(self.accesskey) > 2 * _SHOWN_OF_ACCESSKEY else "…"


class NonceClock:
    """
    Makes nonces from the server's time in milliseconds, as far as it is known; each is above the one before.

    The API does not require nonces to grow. But a server may accept each signed request only once, and then two calls
    within one millisecond need different nonces. Threads may share a clock.
    """

    def __init__(self, clock_ms: Callable[[], int]) -> None:
        """Start with the time of this machine, which *clock_ms* returns in ms since 1970."""
        self._clock_ms = clock_ms
        self._guard = threading.Lock()
        self._offset_ms = 0
        self._last_ms = 0

    @property
    def offset_ms(self) -> int:
        """How far the server's clock is ahead of this machine's."""
        return self._offset_ms

    def local_ms(self) -> int:
        """Return the time of this machine."""
        return self._clock_ms()

    def correct(self, offset_ms: int) -> None:
        """Assume from now on that the server's clock is *offset_ms* ahead."""
        with self._guard:
            self._offset_ms = offset_ms
            self._last_ms = 0  # nonces of the wrong clock do not count

    def begin_at(self, least_ms: int) -> None:
        """Give no nonce below *least_ms* from now on, unless that is absurd; a server asks for it after its start."""
        with self._guard:
            if least_ms <= self._clock_ms() + self._offset_ms + _AHEAD_MAX_MS:
                self._last_ms = max(self._last_ms, least_ms - 1)

    def nonce(self) -> str:
        """Return the next nonce, thirteen digits."""
        with self._guard:
            now_ms = max(self._clock_ms() + self._offset_ms, self._last_ms + 1)
            self._last_ms = min(now_ms, _NONCE_END - 1)
            return f"{self._last_ms:0{_NONCE_DIGITS}d}"


def signature(params: Mapping[str, str], secretkey: str) -> str:
    """
    Return the signature of *params*: HMAC-SHA256 of the ``name=value`` pairs joined with ``&``, in lower-case hex.

    The pairs are sorted by name in byte order, without ``signature`` and without blank values. Names and values are
    signed before percent-encoding.
    """
    names = sorted((name for name, value in params.items() if value and name != "signature"), key=str.encode)
    text = "&".join(f"{name}={params[name]}" for name in names)
    return hmac.new(secretkey.encode(), text.encode(), "sha256").hexdigest()


def clean_params(params: Mapping[str, str | int]) -> dict[str, str]:
    """
    Return a copy of *params* with text values.

    Raises:
        ValueError: A name is malformed, one that signing fills in, or given twice in upper and lower case; or a value
            is blank, no Unicode text, or contains ``&`` or ``%``. A server would refuse the request.
        TypeError: A value is neither text nor int.
    """
    cleaned: dict[str, str] = {}
    for name, value in params.items():
        if not isinstance(name, str) or not _NAME.match(name) or name.lower() in OWN_NAMES:
            raise ValueError(f"parameter {name!r}: 1 to 64 of A-Z a-z 0-9 . _ -, and not {sorted(OWN_NAMES)}")
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise TypeError(f"parameter {name!r} must be text or int, not {type(value).__name__}")
        if any(name.lower() == other.lower() for other in cleaned):
            raise ValueError(f"parameter {name!r} is given twice; names are compared without case")
        cleaned[name] = _clean_value(name, str(value))
    return cleaned


def _clean_value(name: str, value: str) -> str:
    found = _NOT_SIGNABLE.search(value)
    if found is not None:
        raise ValueError(f"the value of parameter {name!r} contains {found[0]!r}, which cannot be signed; leave it out")
    if not value or any("\ud800" <= sign <= "\udfff" for sign in value):
        raise ValueError(f"the value of parameter {name!r} must be text that is not empty, without lone surrogates")
    return value


def signed_params(params: Mapping[str, str], credentials: Credentials, nonce: str) -> tuple[tuple[str, str], ...]:
    """
    Return *params* with ``accesskey``, ``nonce`` and ``signature``, in the order in which they are sent.

    Raises:
        ValueError: They are more or longer than a server takes.
    """
    filled = {**params, "accesskey": credentials.accesskey, "nonce": nonce}
    pairs = (*sorted(filled.items()), ("signature", signature(filled, credentials.secretkey)))
    if len(pairs) > PARAMETERS_MAX:
        raise ValueError(f"{len(pairs)} parameters; {PARAMETERS_MAX} at most would pass")
    length = len(urlencode(pairs, quote_via=quote))
    if length > QUERY_MAX_BYTES:
        raise ValueError(f"the parameters are {length} bytes long, encoded; {QUERY_MAX_BYTES} at most would pass")
    return pairs
