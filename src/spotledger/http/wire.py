"""
How errors are answered over HTTP: one table for both listeners.

A row has the HTTP status (for the operator API, and for public answers as problem details) and the code in the body of
the public v1 API (rule R17). An error class without a row takes the row of its nearest base. A test requires a row for
each leaf of the tree but `SetupError`, which never reaches a caller, and the errors that only clients raise.
"""

from __future__ import annotations

import traceback
from typing import Any, NamedTuple

from spotledger import errors

PROBLEM_MEDIA_TYPE = "application/problem+json"


class Row(NamedTuple):
    """How one class of errors is answered: the HTTP status, the v1 code, and a short title."""

    status: int
    v1_code: int
    title: str


TABLE: dict[type[errors.SpotledgerError], Row] = {
    errors.SpotledgerError: Row(500, 404, "Internal error"),
    # change the request
    errors.InvalidRequest: Row(422, 400, "Invalid request"),
    errors.MalformedRequest: Row(400, 400, "Malformed request"),
    errors.InvalidAmount: Row(422, 400, "Invalid amount"),
    errors.IdempotencyConflict: Row(409, 400, "Idempotency key used with other content"),
    errors.CoinAlreadyListed: Row(422, 404, "Coin already listed"),
    errors.CustomerAlreadyRegistered: Row(422, 404, "Customer already registered"),
    errors.LegsUnbalanced: Row(422, 400, "Legs unbalanced"),
    errors.FeesShort: Row(422, 404, "Fees short"),
    errors.HouseAccountReserved: Row(422, 400, "House account reserved"),
    errors.HouseAccountAlreadyOpen: Row(422, 404, "House account already open"),
    errors.UnknownHouseAccount: Row(422, 404, "Unknown house account"),
    errors.BalanceTooLarge: Row(422, 404, "Balance too large"),
    errors.AlreadyReversed: Row(422, 404, "Already reversed"),
    errors.LastAdminToken: Row(422, 404, "Last admin token"),
    errors.RotationRefused: Row(422, 404, "Rotation refused"),
    errors.ChainPartlyKnown: Row(422, 404, "Chain partly known"),
    errors.EpochMissing: Row(422, 404, "Epoch missing"),
    errors.UnknownPosition: Row(422, 404, "Unknown position"),
    errors.PreconditionFailed: Row(422, 404, "Precondition failed"),
    errors.TooLate: Row(422, 404, "Too late"),
    errors.NotFound: Row(404, 404, "Not found"),
    errors.MethodNotAllowed: Row(405, 404, "Method not allowed"),
    errors.InsufficientAvailable: Row(422, 404, "Insufficient available"),
    errors.UnknownCoin: Row(422, 404, "Unknown coin"),
    errors.UnknownCustomer: Row(422, 404, "Unknown customer"),
    errors.UnknownHold: Row(422, 404, "Unknown hold"),
    errors.HoldShort: Row(422, 404, "Hold short"),
    errors.HoldClosed: Row(422, 404, "Hold closed"),
    errors.HoldExpired: Row(422, 404, "Hold expired"),
    errors.UnknownEntry: Row(422, 404, "Unknown entry"),
    errors.HouseShort: Row(422, 404, "House account short"),
    errors.ChainFailed: Row(422, 404, "Chain failed"),
    # prove who you are
    errors.AccessKeyUnknown: Row(401, 307, "Access key unknown"),
    errors.AccessKeyRevoked: Row(401, 307, "Access key revoked"),
    errors.AccessKeyExpired: Row(401, 307, "Access key expired"),
    errors.AddressNotAllowed: Row(403, 307, "Address not allowed"),
    errors.PermissionMissing: Row(403, 307, "Permission missing"),
    errors.SignatureRefused: Row(401, 308, "Signature refused"),
    errors.NonceRefused: Row(400, 400, "Nonce refused"),
    errors.ReplayRefused: Row(400, 400, "Replay refused"),
    errors.TokenRefused: Row(401, 307, "Token refused"),
    errors.ScopeMissing: Row(403, 307, "Scope missing"),
    # try again
    errors.Unavailable: Row(503, 404, "Unavailable now"),
    errors.StoreBusy: Row(503, 404, "Busy"),
    errors.StoreUnavailable: Row(503, 404, "Unavailable"),
    errors.ClockUntrusted: Row(503, 404, "Clock untrusted"),
    errors.LimitExceeded: Row(429, 404, "Too many requests"),
    # the operator has to look at the ledger
    errors.LedgerDamaged: Row(500, 404, "Ledger damaged"),
}


def row_of(error: errors.SpotledgerError | type[errors.SpotledgerError]) -> Row:
    """Return the row for *error*: its own, or that of its nearest base."""
    kind = error if isinstance(error, type) else type(error)
    return next(TABLE[base] for base in kind.__mro__ if base in TABLE)


def damage_of(corrupt: errors.LedgerCorrupt) -> errors.LedgerDamaged:
    """Return *corrupt* as the operator API answers it: with the place. Traders are not told it."""
    return errors.LedgerDamaged(f"The ledger is damaged: {corrupt}.")


def places_of(error: BaseException) -> str:
    """Return where *error* happened, for the log: its text and locals may hold what was sent, line breaks too."""
    return "".join(traceback.format_list(traceback.extract_tb(error.__traceback__)))


def problem(error: errors.SpotledgerError, request_id: str) -> dict[str, Any]:
    """
    Return *error* as RFC 9457 problem details.

    Returns:
        The members ``type``, ``title``, ``status``, ``detail``, ``code`` and ``request_id``, the details of the error,
        which never replace one of those, and ``seq`` and ``epoch`` for a kept refusal.
    """
    row = row_of(error)
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": row.title,
        "status": row.status,
        "detail": error.message,
        "code": error.code,
        "request_id": request_id,
    }
    if isinstance(error, errors.Refused) and error.seq is not None:
        body |= {"seq": error.seq, "epoch": error.epoch}
    return {**error.details, **body}
