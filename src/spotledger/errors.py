"""
Every error of spotledger, in one tree, cut by what the caller must do.

    SpotledgerError
    ├── Refused                     mend the request; no money moved
    │   ├── InvalidRequest          a field is unknown, missing or of the wrong form
    │   │   ├── MalformedRequest    the request cannot be read at all
    │   │   └── InvalidAmount       an amount that is not exactly a number of units
    │   ├── IdempotencyConflict     the key was used before with other content
    │   ├── CoinAlreadyListed
    │   ├── CustomerAlreadyRegistered
    │   ├── AlreadyReversed
    │   ├── LastAdminToken          nobody could make tokens any more
    │   ├── ChainPartlyKnown        some keys of a chain are known and some are new
    │   ├── EpochMissing            a plain number where the ledger was restored and the epoch has to be named
    │   ├── UnknownPosition         a position that is not in this journal
    │   ├── PreconditionFailed      the hold or entry is not what the request says it is
    │   ├── TooLate                 the time that the request allowed is over
    │   ├── NotFound                no such thing to read
    │   ├── MethodNotAllowed        the path is there, but not with this method
    │   └── Kept                    a refusal that is kept in the journal with its key
    │       ├── InsufficientAvailable
    │       ├── UnknownCoin
    │       ├── UnknownCustomer
    │       ├── UnknownHold
    │       ├── HoldShort
    │       ├── HoldClosed
    │       ├── HoldExpired
    │       ├── UnknownEntry
    │       ├── HouseShort
    │       ├── ChainFailed         another operation of the chain was refused
    │       └── BalanceTooLarge     the balance would reach 10**38 units
    ├── Denied                      prove who you are
    │   ├── AccessKeyRefused        v1 code 307
    │   │   ├── AccessKeyUnknown
    │   │   ├── AccessKeyRevoked
    │   │   ├── AccessKeyExpired
    │   │   ├── AddressNotAllowed
    │   │   └── PermissionMissing
    │   ├── SignatureRefused        v1 code 308
    │   ├── NonceRefused            v1 code 400
    │   ├── ReplayRefused           v1 code 400
    │   ├── TokenRefused            operator API, 401
    │   └── ScopeMissing            operator API, 403
    ├── Unavailable                 try again, with the same key
    │   ├── StoreBusy               the queue of waiting writes is full
    │   ├── StoreUnavailable        the disk or the database did not do it
    │   ├── ClockUntrusted          the clock leapt; nothing is booked until it fits again
    │   └── LimitExceeded           too many requests
    ├── SetupError                  the service cannot start as it is set up
    │   ├── DataFolderInUse
    │   ├── DataFolderUnusable      read-only, full, not a folder, no ledger
    │   ├── SchemaMismatch          the file was written by another version
    │   ├── JournalShorter          the journal or the access keys lack what was acknowledged
    │   ├── BackupDamaged           not whole, or not what it says it is
    │   ├── MasterKeyRefused        missing, malformed or not the one that the secrets were sealed with
    │   └── SettingInvalid
    ├── TransportError              client: no answer came; the outcome is unknown
    └── ProtocolError               client: an answer came that is not of the documented form

    LedgerCorrupt                   outside the tree: an invariant does not hold, all writing stops

A class's docstring is its default message. ``code`` is stable: programs may rely on it.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar


class SpotledgerError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None, **details: Any) -> None:
        """
        Say *message* (the class's docstring where none is given).

        Args:
            message: What was found, and what would pass.
            **details: Further facts for programs, such as ``field`` or ``available``; values are text or int.
        """
        self.message = message or inspect.cleandoc(type(self).__doc__ or "")
        self.details = details
        super().__init__(self.message)


# --- mend the request -----------------------------------------------------------------------------


class Refused(SpotledgerError):
    """The request was refused; no money moved."""

    code = "refused"
    kept: ClassVar[bool] = False
    #: Position of the kept refusal in the journal, where it is kept.
    seq: int | None = None
    #: Whether this is the answer to an earlier request, given again.
    replayed: bool = False


class InvalidRequest(Refused):
    """A field is unknown, missing or of the wrong form."""

    code = "invalid_request"


class MalformedRequest(InvalidRequest):
    """The request cannot be read."""

    code = "malformed_request"


class InvalidAmount(InvalidRequest):
    """An amount is a plain decimal above zero with no more decimals than the coin's scale."""

    code = "invalid_amount"


class IdempotencyConflict(Refused):
    """The idempotency key was used before for a request with other content."""

    code = "idempotency_conflict"


class CoinAlreadyListed(Refused):
    """The coin is listed already, and a listing never changes."""

    code = "coin_already_listed"


class CustomerAlreadyRegistered(Refused):
    """The customer is registered already."""

    code = "customer_already_registered"


class AlreadyReversed(Refused):
    """The entry was reversed before; an entry is reversed at most once."""

    code = "already_reversed"


class LastAdminToken(Refused):
    """This is the last token in use with the scope admin; make another one first, then revoke this one."""

    code = "last_admin_token"


class ChainPartlyKnown(Refused):
    """Some keys of the chain were used before and some were not; a chain is sent again as it was, or with new keys."""

    code = "chain_partly_known"


class EpochMissing(InvalidRequest):
    """The ledger was restored, so a plain number does not say which entry is meant; name its epoch."""

    code = "epoch_missing"


class UnknownPosition(InvalidRequest):
    """The position is not in this journal."""

    code = "unknown_position"


class PreconditionFailed(Refused):
    """The hold or the entry is not what the request says it is."""

    code = "precondition_failed"


class TooLate(Refused):
    """The time that the request allowed for itself is over; nothing was booked."""

    code = "too_late"


class NotFound(Refused):
    """There is no such thing to read."""

    code = "not_found"


class MethodNotAllowed(Refused):
    """This path takes another method."""

    code = "method_not_allowed"


class Kept(Refused):
    """The request was refused, and the refusal is kept with its key."""

    code = "kept"
    kept = True


class InsufficientAvailable(Kept):
    """Less is available than the request would take."""

    code = "insufficient_available"


class UnknownCoin(Kept):
    """The coin is not listed."""

    code = "unknown_coin"


class UnknownCustomer(Kept):
    """The customer is not registered."""

    code = "unknown_customer"


class UnknownHold(Kept):
    """There is no such hold."""

    code = "unknown_hold"


class HoldShort(Kept):
    """Less remains of the hold than the request would take."""

    code = "hold_short"


class HoldClosed(Kept):
    """Nothing remains of the hold."""

    code = "hold_closed"


class HoldExpired(Kept):
    """The hold is past its time."""

    code = "hold_expired"


class UnknownEntry(Kept):
    """There is no such entry in the journal."""

    code = "unknown_entry"


class HouseShort(Kept):
    """A house account has less than the request would take back."""

    code = "house_short"


class ChainFailed(Kept):
    """Another operation of the chain was refused, so none of it was done."""

    code = "chain_failed"


class BalanceTooLarge(Kept):
    """The balance would reach 10**38 units; amounts and balances stay below that."""

    code = "balance_too_large"


# --- prove who you are ----------------------------------------------------------------------------


class Denied(SpotledgerError):
    """The caller could not be let in."""

    code = "denied"


class AccessKeyRefused(Denied):
    """The access key may not do this."""

    code = "access_key_refused"


class AccessKeyUnknown(AccessKeyRefused):
    """The access key is unknown; send one that was issued by this exchange and is not deleted."""

    code = "access_key_unknown"


class AccessKeyRevoked(AccessKeyRefused):
    """The access key was revoked; send another one."""

    code = "access_key_revoked"


class AccessKeyExpired(AccessKeyRefused):
    """The access key has expired; send another one."""

    code = "access_key_expired"


class AddressNotAllowed(AccessKeyRefused):
    """The access key may not be used from this address."""

    code = "address_not_allowed"


class PermissionMissing(AccessKeyRefused):
    """The access key lacks the permission that this call needs."""

    code = "permission_missing"


class SignatureRefused(Denied):
    """The signature does not fit the parameters and the secret of this access key."""

    code = "signature_refused"


class NonceRefused(Denied):
    """The nonce is outside the window around the server's time."""

    code = "nonce_refused"


class ReplayRefused(Denied):
    """This signed request was used before; sign a new one."""

    code = "replay_refused"


class TokenRefused(Denied):
    """Send Authorization: Bearer followed by an operator token that is not revoked."""

    code = "token_refused"


class ScopeMissing(Denied):
    """The operator token lacks the scope that this call needs."""

    code = "scope_missing"


# --- try again, with the same key -----------------------------------------------------------------


class Unavailable(SpotledgerError):
    """The service could not do it now; try again with the same idempotency key."""

    code = "unavailable"


class StoreBusy(Unavailable):
    """Too many writes are waiting; try again with the same idempotency key."""

    code = "store_busy"


class StoreUnavailable(Unavailable):
    """The ledger could not be written; try again with the same idempotency key."""

    code = "store_unavailable"


class ClockUntrusted(Unavailable):
    """The clock cannot be trusted now, so nothing is booked; try again with the same key."""

    code = "clock_untrusted"


class LimitExceeded(Unavailable):
    """Too many requests; wait and try again."""

    code = "limit_exceeded"


# --- the service cannot start ---------------------------------------------------------------------


class SetupError(SpotledgerError):
    """The service cannot start as it is set up."""

    code = "setup_error"


class DataFolderInUse(SetupError):
    """Another process owns the data folder."""

    code = "data_folder_in_use"


class DataFolderUnusable(SetupError):
    """The data folder cannot be used."""

    code = "data_folder_unusable"


class SchemaMismatch(SetupError):
    """The ledger file was written by another version of spotledger."""

    code = "schema_mismatch"


class JournalShorter(SetupError):
    """The journal ends before an entry that was acknowledged, or the access keys are behind a change that was made."""

    code = "journal_shorter"


class BackupDamaged(SetupError):
    """The backup is damaged."""

    code = "backup_damaged"


class MasterKeyRefused(SetupError):
    """The master key is missing, malformed, or not the one that the secrets were sealed with."""

    code = "master_key_refused"


class SettingInvalid(SetupError):
    """A setting has a value that it cannot have."""

    code = "setting_invalid"


# --- the client -----------------------------------------------------------------------------------


class TransportError(SpotledgerError):
    """No answer came; whether the request was carried out is unknown."""

    code = "transport_error"


class ProtocolError(SpotledgerError):
    """An answer came that is not of the documented form."""

    code = "protocol_error"


class LedgerCorrupt(Exception):
    """An invariant of the ledger does not hold; nothing more is written until a person has looked."""


def refusal_of_code(code: str, message: str, details: dict[str, Any]) -> Refused:
    """
    Return the refusal with this stable *code*, as it was first given.

    Raises:
        LedgerCorrupt: No refusal has the code.
    """
    waiting: list[type[Refused]] = [Refused]
    while waiting:
        found = waiting.pop()
        if found.code == code:
            return found(message, **details)
        waiting += found.__subclasses__()
    raise LedgerCorrupt(f"the journal keeps a refusal with the unknown code {code!r}")
