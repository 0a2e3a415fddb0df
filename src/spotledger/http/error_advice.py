"""What to do about each error, by its code, for the page of errors; and that page."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Final

from spotledger import errors
from spotledger.http import wire

ADVICE: Final[dict[str, str]] = {
    # mend the request
    "invalid_request": "Read `field` and `detail`: they name what is unknown, missing or wrong, and what would pass.",
    "malformed_request": "Send one JSON object in UTF-8, within the limit of size, whole and in time.",
    "invalid_amount": "Send a plain decimal above zero in a text, with no more decimals than the coin's scale.",
    "idempotency_conflict": "This key named another write; `field` says where they differ, `first_seq` is its entry. "
    "If you meant that write, send it as it was; if this is a new one, give it a key of its own.",
    "coin_already_listed": "Nothing needs to be done, or choose another symbol: a listing never changes.",
    "customer_already_registered": "Nothing needs to be done.",
    "already_reversed": "Nothing needs to be done: `by` is the entry that reversed it.",
    "last_admin_token": "Make another token with the scope `admin`, then revoke this one with it.",
    "chain_partly_known": "Send the chain exactly as it was sent, or with new keys throughout.",
    "not_found": "Look at the path and the id in it.",
    "method_not_allowed": "Use one of the methods in the `Allow` header.",
    # kept refusals
    "insufficient_available": "Less is available than was asked for; `available` says how much is. To try again when "
    "there is more, use a new key: this refusal is kept with its key.",
    "unknown_coin": "List the coin first, then try again with a new key.",
    "unknown_customer": "Register the customer first, then try again with a new key.",
    "unknown_hold": "Look for the hold's id, or for the key that opened it.",
    "hold_short": "Less remains of the hold than this would take; `remaining` says how much does.",
    "hold_closed": "Nothing remains of the hold: its money was used or freed. Look at the entries about it.",
    "hold_expired": "The hold's time has come and what remained is available again. Open a new hold.",
    "unknown_entry": "Look for the `seq` of the entry in the customer's history.",
    "house_short": "A house account has less than the reversal would take back; bring it in first.",
    "chain_failed": "Another operation of the chain was refused: `cause_key` names it and `cause_code` says why. Mend "
    "that one and send the whole chain with new keys.",
    "balance_too_large": "Balances stay below 10**38 units; list the coin with fewer decimals if amounts need more.",
    # prove who you are
    "access_key_unknown": "Use an access key of this exchange that was not deleted.",
    "access_key_revoked": "Ask for another access key.",
    "access_key_expired": "Ask for another access key.",
    "address_not_allowed": "Call from an address that the access key is bound to.",
    "permission_missing": "Ask for an access key with the permission that the call needs.",
    "signature_refused": "Sign the parameters as they are sent, with the secret of this access key.",
    "nonce_refused": "Set the machine's clock, or ask the service for its time.",
    "replay_refused": "Sign each request anew, with a nonce of its own.",
    "token_refused": "Send `Authorization: Bearer` with an operator token that is not revoked.",
    "scope_missing": "Use a token with the scope that `scope` names.",
    # try again
    "unavailable": "Wait a little and send the same again; `detail` says what it waits for.",
    "store_busy": "Wait for `Retry-After` and send the same again, with the same key.",
    "store_unavailable": "Send the same again with the same key: whether it was done is learnt from the answer. If it "
    "goes on, look at the disk and at the log of the service.",
    "limit_exceeded": "Wait for `Retry-After`; send less often.",
    # the service cannot start
    "data_folder_in_use": "The message names the process that owns the folder; stop it, or name another folder.",
    "data_folder_unusable": "Make room, give the right to write, or name another folder.",
    "schema_mismatch": "Use the version of spotledger that wrote the file, or one that can migrate it.",
    "master_key_refused": "Give the master key that the secrets were sealed with.",
    "backup_damaged": "Restore another backup; this file is not what was written.",
    "setting_invalid": "The message names the setting and what would pass.",
    # the client
    "transport_error": "Send the same again with the same key; the answer says whether it had been done.",
    "protocol_error": "Something that is not spotledger answered, or a version of it that is not understood.",
}
_BRANCHES: Final = (
    (errors.Refused, "Refused: mend the request", "No money moved."),
    (errors.Denied, "Denied: prove who you are", "Nothing was done."),
    (errors.Unavailable, "Unavailable: try again", "With the same idempotency key, so that it happens once."),
    (errors.SetupError, "The service cannot start", "Said by the command line, never over HTTP."),
    (errors.TransportError, "The client: no answer", "Raised by the Python clients."),
    (errors.ProtocolError, "The client: an answer of another form", "Raised by the Python clients."),
)


def leaves(kind: type[errors.SpotledgerError]) -> Iterator[type[errors.SpotledgerError]]:
    """Give the errors below *kind* that are raised, in the order of the tree."""
    below = [found for found in kind.__subclasses__() if found.__module__ == errors.__name__]
    if not below or kind in (errors.InvalidRequest, errors.Unavailable):
        yield kind
    for found in below:
        yield from leaves(found)


def errors_markdown() -> str:
    """Return the page of all errors in Markdown."""
    lines = [
        "# Errors",
        "",
        "<!-- Made by `spotledger reference errors`; do not edit. -->",
        "",
        "Every error has a stable `code`. Over HTTP it comes as problem details (RFC 9457): `title`, `status`,",
        "`detail`, `code`, `request_id`, and facts such as `field`. A refusal that is *kept* is in the journal at its",
        "`seq`: the same request with the same key is refused the same for ever, so try again with a new key.",
        "The public v1 API says its own codes in bodies with HTTP status 200; they are in the last column.",
        "",
        "If an invariant of the ledger itself is broken, writes end with `store_unavailable`, the service is not",
        "ready, and the log says what was found: run `spotledger audit`.",
    ]
    for branch, title, about in _BRANCHES:
        over_http = branch in (errors.Refused, errors.Denied, errors.Unavailable)
        lines += ["", f"## {title}", "", about, ""]
        lines += ["| code | status | meaning | what to do | v1 |", "|---|---|---|---|---|"]
        for kind in leaves(branch):
            lines.append(_row(kind, over_http))
    return "\n".join(lines) + "\n"


def _row(kind: type[errors.SpotledgerError], over_http: bool) -> str:
    meaning = " ".join(inspect.cleandoc(kind.__doc__ or "").split())
    if issubclass(kind, errors.Kept):
        meaning += " *Kept.*"
    row = wire.row_of(kind)
    status, v1_code = (str(row.status), str(row.v1_code)) if over_http else ("", "")
    return f"| `{kind.code}` | {status} | {meaning} | {ADVICE[kind.code]} | {v1_code} |"
