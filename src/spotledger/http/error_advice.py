"""The reference page of errors in Markdown, with advice for each error by its code."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Final

from spotledger import errors
from spotledger.http import wire

ADVICE: Final[dict[str, str]] = {
    # change the request
    "invalid_request": "Read `field` and `detail`: they name what is unknown, missing or wrong, and what would pass.",
    "malformed_request": "Send one complete JSON object in UTF-8, within the size limit and the time limit.",
    "invalid_amount": "Send a plain decimal above zero as a string, with no more decimals than the coin's scale.",
    "idempotency_conflict": "The key belongs to another write: `field` names a difference, `first_seq` is its entry. "
    "To repeat that write, send it unchanged; for a new write, use a new key.",
    "coin_already_listed": "Do nothing, or choose another symbol: a listing never changes.",
    "customer_already_registered": "Do nothing.",
    "legs_unbalanced": "Make the legs sum to zero for each coin: `coin` and `sum` say what is left over.",
    "house_account_reserved": "Name another account: @external and what customers owe are moved by the ledger itself.",
    "house_account_already_open": "Do nothing, or choose another name: a house account stays as it was opened.",
    "unknown_house_account": "Open the house account first, then send the same request with the same key.",
    "fees_short": "Add to the fee account, or name another one, then send the same fill with the same key.",
    "house_short": "Wait until the house account has enough, then send the same request with the same key.",
    "already_reversed": "Do nothing: `by` is the entry that reversed it.",
    "last_admin_token": "Make another token with the scope `admin`, for more than a day, then revoke this one.",
    "rotation_refused": "Do what `detail` says, such as giving the new master key to the nodes that it names, and send "
    "the request again.",
    "chain_partly_known": "Send the chain exactly as it was sent before, or with new keys only.",
    "epoch_missing": "The ledger was restored, and this number was given again: look up what was meant, and send its "
    "position, such as `2-42`. A follower undoes what it took after `last_common`, and goes on from there.",
    "unknown_position": "The entry was lost in a restore. A follower undoes what it took after `last_common`, and goes "
    "on from there; a write that named it has to be looked at by a person.",
    "precondition_failed": "The hold or entry is not the one that was meant: look it up again. The key is unused.",
    "unknown_coin": "List the coin, then send the same request with the same key: it is unused.",
    "unknown_customer": "Register the customer, then send the same request with the same key: it is unused.",
    "unknown_hold": "Check the hold's id, or the key that opened it. The key of this request is unused.",
    "unknown_entry": "Look up the `seq` of the entry in the customer's history. The key is unused.",
    "balance_too_large": "Keep balances below 10**38 units; a coin with larger balances needs a smaller scale.",
    "too_late": "Nothing was booked, and the key is unused: give it up, or send it again with a later `not_after_ms`.",
    "not_found": "Check the path and the id in it.",
    "method_not_allowed": "Use one of the methods in the `Allow` header.",
    # kept refusals
    "insufficient_available": "Ask for at most `available`. To try again when more is available, use a new key: this "
    "refusal is kept with its key, except that of a house account, whose key is unused.",
    "hold_short": "Take at most `remaining` of the hold, with a new key.",
    "hold_closed": "Nothing remains of the hold: its money was used or released. Read its entries to see how.",
    "hold_expired": "Open a new hold: what remained of this one is available again.",
    "chain_failed": "Another operation of the chain was refused: `cause_key` names it and `cause_code` says why. "
    "Correct it, and send the whole chain again: with new keys if the answers have a `seq`, so that they are kept.",
    # prove who you are
    "access_key_unknown": "Use an access key that this exchange issued and did not delete.",
    "access_key_revoked": "Ask for another access key.",
    "access_key_expired": "Ask for another access key.",
    "address_not_allowed": "Call from an address that the access key allows.",
    "permission_missing": "Ask for an access key with the permission that the call needs.",
    "signature_refused": "Sign the parameters exactly as they are sent, with the secret of this access key.",
    "nonce_refused": "Correct the clock of the client, or ask the service for its time.",
    "replay_refused": "Sign each request separately, with its own nonce.",
    "token_refused": "Send `Authorization: Bearer` with an operator token that is not revoked, has not expired and may"
    " be used from this address.",
    "scope_missing": "Use a token with the scope that `scope` names.",
    # try again
    "unavailable": "Wait a little and send the same request again; `detail` gives the reason.",
    "store_busy": "Wait for `Retry-After`, then send the same request with the same key.",
    "store_unavailable": "Send the same request with the same key: the answer tells whether the first one was done. If "
    "it keeps failing, check the disk and the log of the service.",
    "clock_untrusted": "Send the same request with the same key later. The operator of the service corrects the clock "
    "of its machine, or of the database, or says that it is right: spotledger clock trust.",
    "limit_exceeded": "Wait for `Retry-After`, and send requests less often.",
    # the ledger is damaged
    "ledger_damaged": "Do not send the request again: it will not pass. Read `detail`, which names the place, keep the "
    "files as they are, and run `spotledger audit`.",
    # the service cannot start
    "data_folder_in_use": "The message names the process that owns the folder; stop it, or name another folder.",
    "data_folder_unusable": "Free space, give permission to write, or name another folder.",
    "file_unusable": "The message names the file and what is in the way.",
    "schema_mismatch": "Use the version of spotledger that wrote the file, or one that can migrate it.",
    "journal_shorter": "Put back the file, or the server, that has the missing entries; spotledger recover says which.",
    "master_key_refused": "Give the master key that encrypted the secrets; after a rotation, the new one.",
    "backup_damaged": "Use another backup; this file is not what was written.",
    "setting_invalid": "The message names the setting and what would pass.",
    # the client
    "transport_error": "Send the same request with the same key; the answer tells whether the first one was done.",
    "protocol_error": "Check the URL and the versions: another program or an incompatible version answered.",
}
_BRANCHES: Final = (
    (errors.Refused, "Refused: change the request", "No money moved."),
    (errors.Denied, "Denied: prove who you are", "Nothing was done."),
    (errors.Unavailable, "Unavailable: try again", "Use the same idempotency key, so that the write happens once."),
    (errors.LedgerDamaged, "The ledger is damaged", "Trying again does not help: the operator has to look at it."),
    (errors.SetupError, "The service cannot start", "Printed by the command line, never sent over HTTP."),
    (errors.TransportError, "Client: no answer", "Raised by the Python clients."),
    (errors.ProtocolError, "Client: an answer of another form", "Raised by the Python clients."),
)


def leaves(kind: type[errors.SpotledgerError]) -> Iterator[type[errors.SpotledgerError]]:
    """Yield the errors at and below *kind* that are raised, in the order of the tree."""
    below = [found for found in kind.__subclasses__() if found.__module__ == errors.__name__]
    if not below or kind in (errors.InvalidRequest, errors.Unavailable):
        yield kind
    for found in below:
        yield from leaves(found)


def errors_markdown() -> str:
    """Return the reference page of all errors in Markdown."""
    lines = [
        "# Errors",
        "",
        "<!-- Made by `spotledger reference errors`; do not edit. -->",
        "",
        "Every error has a stable `code`. Over HTTP it is sent as problem details (RFC 9457): `title`, `status`,",
        "`detail`, `code`, `request_id`, and facts such as `field`. The public v1 API sends its own codes in bodies",
        "with HTTP status 200; they are in the last column.",
        "",
        "The journal *keeps* a refusal, at its `seq`, whose cause is the customer's own balance or hold: the same",
        "request with the same key gets the same refusal for ever, so try again with a new key. Every other refusal",
        "leaves the key unused: send the same request with the same key once the cause is gone.",
        "",
        "If the journal is damaged, every write fails with `ledger_damaged`, which names the entry and the byte of the",
        "file, and the service is not ready until it is started again. Traders are not told where the damage is.",
    ]
    for branch, title, about in _BRANCHES:
        over_http = branch in (errors.Refused, errors.Denied, errors.Unavailable, errors.LedgerDamaged)
        lines += ["", f"## {title}", "", about, ""]
        lines += ["| code | status | meaning | what to do | v1 |", "|---|---|---|---|---|"]
        for kind in leaves(branch):
            lines.append(_row(kind, over_http))
    return "\n".join(lines) + "\n"


def _row(kind: type[errors.SpotledgerError], over_http: bool) -> str:
    meaning = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    if issubclass(kind, errors.Kept):
        meaning += " *Kept.*"
    if kind is errors.ChainFailed:
        meaning += " (Only if that refusal is.)"
    row = wire.row_of(kind)
    status, v1_code = (str(row.status), str(row.v1_code)) if over_http else ("", "")
    return f"| `{kind.code}` | {status} | {meaning} | {ADVICE[kind.code]} | {v1_code} |"
