"""
Every error of spotledger, in one tree, divided by what the caller must do.

    SpotledgerError
    ├── Refused                     change the request; no money moved
    │   ├── InvalidRequest          a field is unknown, missing or malformed
    │   │   ├── MalformedRequest    the request cannot be read at all
    │   │   ├── InvalidAmount       an amount that is not a whole number of units
    │   │   ├── LegsUnbalanced
    │   │   └── HouseAccountReserved  @external and the receivables are the ledger's own
    │   ├── IdempotencyConflict     the key was used before with other content
    │   ├── CoinAlreadyListed
    │   ├── CustomerAlreadyRegistered
    │   ├── HouseAccountAlreadyOpen
    │   ├── UnknownHouseAccount
    │   ├── FeesShort               the fee account cannot pay the rebates of a fill
    │   ├── HouseShort              a house account has less than a reversal would take back
    │   ├── AlreadyReversed
    │   ├── LastAdminToken          without it no token could make tokens
    │   ├── RotationRefused         there is no new master key, or a node lacks it
    │   ├── ChainPartlyKnown        some keys of a chain were used before and some were not
    │   ├── EpochMissing            a plain number above the last entry of epoch 1
    │   ├── UnknownPosition         a position of another history, before a restore
    │   ├── PreconditionFailed      the hold or entry named is not the one that was meant
    │   ├── UnknownCoin
    │   ├── UnknownCustomer
    │   ├── UnknownHold
    │   ├── UnknownEntry
    │   ├── BalanceTooLarge         the balance would reach 10**38 units
    │   ├── TooLate                 its not_after_ms has passed
    │   ├── NotFound                there is nothing with this path or id
    │   ├── MethodNotAllowed        the path takes another method
    │   └── Kept                    the customer's own balance or hold is the cause: kept with the key
    │       ├── InsufficientAvailable
    │       ├── HoldShort
    │       ├── HoldClosed
    │       ├── HoldExpired
    │       └── ChainFailed         another operation of the chain was refused; kept where that is
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
    │   ├── StoreBusy               the queue of writes is full
    │   ├── StoreUnavailable        the disk or the database failed
    │   ├── ClockUntrusted          the clock leapt, or disagrees with the database's
    │   └── LimitExceeded           too many requests
    ├── LedgerDamaged               what a `LedgerCorrupt` is to a caller: no repeat of the request will pass
    ├── SetupError                  the service cannot start with this setup
    │   ├── DataFolderInUse
    │   ├── DataFolderUnusable      read-only, full, not a folder, no ledger
    │   ├── FileUnusable            a file that a command names cannot be read or written
    │   ├── SchemaMismatch          the file was written by another version
    │   ├── JournalShorter          the journal or the access keys lack what was acknowledged
    │   ├── BackupDamaged           incomplete, or not what was written
    │   ├── MasterKeyRefused        missing, malformed or not the one that encrypted the secrets
    │   └── SettingInvalid
    ├── TransportError              client: no answer arrived; the outcome is unknown
    └── ProtocolError               client: an answer is not of the documented form

    LedgerCorrupt                   outside the tree: an invariant does not hold, and all writing stops

The docstring of a class is its default message. ``code`` is stable: programs may rely on it.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar


class SpotledgerError(Exception):
    """An unexpected error occurred."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str | None = None, **details: Any) -> None:
        """
        Make an error with *message*, or with the docstring of its class.

        Args:
            message: What was found, and what would pass.
            **details: Facts for programs, such as ``field`` or ``available``; values are text or int.
        """
        self.message = message or inspect.cleandoc(type(self).__doc__ or "")
        self.details = details
        super().__init__(self.message)


# --- change the request ---------------------------------------------------------------------------


class Refused(SpotledgerError):
    """The request was refused; no money moved."""

    code = "refused"
    #: Whether the journal keeps the refusal with its key.
    kept: bool = False
    #: The number of a kept refusal in the journal, and its epoch.
    seq: int | None = None
    epoch: int | None = None
    #: Whether this repeats the answer to an earlier request with the same key.
    replayed: bool = False


class InvalidRequest(Refused):
    """A field is unknown, missing or malformed."""

    code = "invalid_request"


class MalformedRequest(InvalidRequest):
    """The request cannot be read."""

    code = "malformed_request"


class InvalidAmount(InvalidRequest):
    """The amount is not a plain decimal above zero with at most as many decimals as the coin has."""

    code = "invalid_amount"


class HouseAccountReserved(InvalidRequest):
    """The house account is the ledger's own: @external, or what a customer owes."""

    code = "house_account_reserved"


class LegsUnbalanced(InvalidRequest):
    """The legs of a post do not sum to zero for each coin."""

    code = "legs_unbalanced"


class IdempotencyConflict(Refused):
    """The idempotency key was used before for a request with other content."""

    code = "idempotency_conflict"


class CoinAlreadyListed(Refused):
    """The coin is already listed, and a listing never changes."""

    code = "coin_already_listed"


class CustomerAlreadyRegistered(Refused):
    """The customer is already registered."""

    code = "customer_already_registered"


class HouseAccountAlreadyOpen(Refused):
    """The house account is already open, and stays as it was opened."""

    code = "house_account_already_open"


class UnknownHouseAccount(Refused):
    """The house account is not open."""

    code = "unknown_house_account"


class FeesShort(Refused):
    """The fee account has less than the fill would take from it for rebates."""

    code = "fees_short"


class HouseShort(Refused):
    """A house account has less than the reversal would take back."""

    code = "house_short"


class AlreadyReversed(Refused):
    """The entry was reversed before; an entry can be reversed once."""

    code = "already_reversed"


class LastAdminToken(Refused):
    """No other token with the scope admin is good for more than a day; make one before you revoke this one."""

    code = "last_admin_token"


class RotationRefused(Refused):
    """The master key cannot be rotated now; nothing was changed."""

    code = "rotation_refused"


class ChainPartlyKnown(Refused):
    """Some keys of the chain were used before and some were not; send it unchanged, or with new keys only."""

    code = "chain_partly_known"


class EpochMissing(Refused):
    """A plain number means epoch 1, and this one is above its last entry; send the position as EPOCH-SEQ."""

    code = "epoch_missing"


class UnknownPosition(Refused):
    """The position is not in this journal: the ledger was restored, and that entry is gone."""

    code = "unknown_position"


class PreconditionFailed(Refused):
    """The hold or entry is not of the customer, coin or epoch that was named with it."""

    code = "precondition_failed"


class UnknownCoin(Refused):
    """The coin is not listed."""

    code = "unknown_coin"


class UnknownCustomer(Refused):
    """The customer is not registered."""

    code = "unknown_customer"


class UnknownHold(Refused):
    """There is no such hold."""

    code = "unknown_hold"


class UnknownEntry(Refused):
    """There is no such entry in the journal."""

    code = "unknown_entry"


class BalanceTooLarge(Refused):
    """The balance would reach 10**38 units; amounts and balances stay below that."""

    code = "balance_too_large"


class TooLate(Refused):
    """The time after which the request is not to be booked any more has passed."""

    code = "too_late"


class NotFound(Refused):
    """There is nothing with this path or id."""

    code = "not_found"


class MethodNotAllowed(Refused):
    """This path takes another method."""

    code = "method_not_allowed"


class Kept(Refused):
    """The request was refused, and the journal keeps the refusal with its key."""

    # The cause is the customer's own balance or hold, which changes all the time: a stray duplicate must not be booked
    # by surprise later. Any other refusal leaves the key unused, so that the same request passes once that is mended.
    code = "kept"
    kept = True


class InsufficientAvailable(Kept):
    """Less is available than the request would take. Of a house account that is not kept."""

    code = "insufficient_available"


class HoldShort(Kept):
    """Less remains of the hold than the request would take."""

    code = "hold_short"


class HoldClosed(Kept):
    """Nothing remains of the hold."""

    code = "hold_closed"


class HoldExpired(Kept):
    """The hold has expired."""

    code = "hold_expired"


class ChainFailed(Kept):
    """Another operation of the chain was refused, so none of the chain was done."""

    code = "chain_failed"


# --- prove who you are ----------------------------------------------------------------------------


class Denied(SpotledgerError):
    """The caller could not be authenticated, or may not do this."""

    code = "denied"


class AccessKeyRefused(Denied):
    """The access key may not do this."""

    code = "access_key_refused"


class AccessKeyUnknown(AccessKeyRefused):
    """The access key is unknown; send one that this exchange issued and did not delete."""

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
    """The signature does not match the parameters and the secret of the access key."""

    code = "signature_refused"


class NonceRefused(Denied):
    """The nonce is outside the window around the server's time."""

    code = "nonce_refused"


class ReplayRefused(Denied):
    """This signed request was used before; sign a new one."""

    code = "replay_refused"


class TokenRefused(Denied):
    """The operator token is missing, invalid or not for this address; send a valid one: Authorization: Bearer TOKEN."""

    code = "token_refused"
    #: For the operator, and not in the answer: which of ``token_missing``, ``token_unknown``, ``token_expired``,
    #: ``token_revoked`` and ``token_address`` it is.
    cause = "token_missing"


class ScopeMissing(Denied):
    """The operator token lacks the scope that this call needs."""

    code = "scope_missing"


# --- try again, with the same key -----------------------------------------------------------------


class Unavailable(SpotledgerError):
    """The service cannot do this now; try again with the same idempotency key."""

    code = "unavailable"


class StoreBusy(Unavailable):
    """Too many writes are waiting; try again with the same idempotency key."""

    code = "store_busy"


class StoreUnavailable(Unavailable):
    """The ledger could not be written; try again with the same idempotency key."""

    code = "store_unavailable"


class ClockUntrusted(Unavailable):
    """The clock leapt, or disagrees with the database's: nothing is booked; try again with the same idempotency key."""

    code = "clock_untrusted"


class LimitExceeded(Unavailable):
    """Too many requests; wait and try again."""

    code = "limit_exceeded"


class LedgerDamaged(SpotledgerError):
    """The ledger is damaged where this request needs it; the operator of the service has to look at it."""

    code = "ledger_damaged"


# --- the service cannot start ---------------------------------------------------------------------


class SetupError(SpotledgerError):
    """The service cannot start with this setup."""

    code = "setup_error"


class DataFolderInUse(SetupError):
    """Another process owns the data folder."""

    code = "data_folder_in_use"


class DataFolderUnusable(SetupError):
    """The data folder cannot be used."""

    code = "data_folder_unusable"


class FileUnusable(SetupError):
    """A file cannot be read or written."""

    code = "file_unusable"


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
    """The master key is missing, malformed, or not the one that encrypted the secrets."""

    code = "master_key_refused"


class SettingInvalid(SetupError):
    """A setting has an invalid value."""

    code = "setting_invalid"


# --- the client -----------------------------------------------------------------------------------


class TransportError(SpotledgerError):
    """No answer arrived; whether the request was carried out is unknown."""

    code = "transport_error"


class ProtocolError(SpotledgerError):
    """The answer is not of the documented form."""

    code = "protocol_error"


class LedgerCorrupt(Exception):
    """An invariant of the ledger does not hold; nothing more is written until someone has examined it."""

    #: Whether the journal is damaged, so that nothing more is written; not so for what is derived and for access keys.
    stops_writes: ClassVar[bool] = True
