"""The commands about access keys, operator tokens, and the trader's own view."""

from __future__ import annotations

import os
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final

import click

from spotledger.archive.backup import check_place
from spotledger.cli.connection import CommandLedger
from spotledger.cli.history import time_text
from spotledger.cli.options import (
    ACCOUNTS,
    all_pages,
    exit_on_error,
    expiry_ms,
    json_option,
    ledger_command,
    own_key,
    own_key_option,
    proxy_option,
)
from spotledger.cli.output import Output
from spotledger.client.operator.key_answers import AccessKey, MadeKey, OperatorToken
from spotledger.client.trader.signed import SignedRequestAPI
from spotledger.clock import now_ms
from spotledger.errors import (
    AccessKeyRefused,
    InvalidRequest,
    SettingInvalid,
    SignatureRefused,
    SpotledgerError,
    TransportError,
    Unavailable,
)
from spotledger.os_errors import unusable_file
from spotledger.security.access_keys import PERMISSIONS
from spotledger.security.tokens import SCOPES
from spotledger.storage.folder import write_secret_file

SECRET_VARIABLE: Final = "SPOTLEDGER_SECRETKEY"  # noqa: S105 - a name, no secret
_ACCOUNT_NUMBERS: Final = {name: number for number, name in enumerate(ACCOUNTS, start=1)}
_ERRORS: Final[dict[int, type[SpotledgerError]]] = {
    307: AccessKeyRefused,
    308: SignatureRefused,
    400: InvalidRequest,
}

_addresses_option: Final = click.option(
    "--address", "addresses", multiple=True, metavar="CIDR", help="An address or network that it may be used from."
)
_expires_option: Final = click.option("--expires", metavar="TIME", help="How long it works: 45s, 30m, 12h, 90d, 2w.")


@click.group()
def key() -> None:
    """Make, show, rotate and revoke the access keys of customers."""


def _show_key(ledger: CommandLedger, out: Output, made: MadeKey) -> None:
    out.document(ledger.document)
    out.line(f"accesskey  {made.accesskey}")
    out.line(f"secretkey  {made.secretkey or 'was shown when this key was made, and is not kept'}")
    out.line(f"customer   {made.customer}")
    out.line(f"may        {', '.join(made.permissions)}")
    if made.secretkey:
        out.line("Keep the secret now: it is not shown again.")


@key.command("create")
@click.option("--customer", required=True, help="The customer whose accounts it opens.")
@click.option("--permission", "permissions", multiple=True, required=True, type=click.Choice(PERMISSIONS))
@click.option("--label", default="", help="What it is for.")
@_addresses_option
@_expires_option
@own_key_option
@ledger_command()
async def key_create(ledger: CommandLedger, out: Output, key: str | None, expires: str | None, **given: Any) -> None:
    """Make an access key. Its secret is shown only once."""
    made = await ledger.create_key(**given, expires_ms=expiry_ms(expires), key=own_key(key, "key-create"))
    _show_key(ledger, out, made)


@key.command("list")
@click.option("--customer", help="Only the access keys of this customer.")
@ledger_command()
async def key_list(ledger: CommandLedger, out: Output, customer: str | None) -> None:
    """Show access keys, revoked and expired ones too. Secrets cannot be shown again."""
    keys: list[AccessKey] = await all_pages(ledger, "keys", partial(ledger.keys, customer))
    out.document(ledger.document)
    rows = ((k.accesskey, k.customer, k.permissions, _state(k), _last_used(k), k.addresses, k.label) for k in keys)
    out.table(("accesskey", "customer", "may", "state", "last used", "from", "label"), rows)


def _state(found: AccessKey | OperatorToken) -> str:
    if found.revoked_ms is not None:
        return "revoked"
    return "expired" if found.expires_ms is not None and found.expires_ms <= now_ms() else "in use"


def _last_used(found: AccessKey | OperatorToken) -> str:
    return "never" if found.last_used_ms is None else time_text(found.last_used_ms)


@key.command("revoke")
@click.argument("accesskey")
@ledger_command()
async def key_revoke(ledger: CommandLedger, out: Output, accesskey: str) -> None:
    """Revoke ACCESSKEY, at once and for ever."""
    revoked = await ledger.revoke_key(accesskey)
    out.document(ledger.document)
    out.line(f"{accesskey} of {revoked.customer} is revoked")


@key.command("rotate")
@click.argument("accesskey")
@own_key_option
@ledger_command()
async def key_rotate(ledger: CommandLedger, out: Output, accesskey: str, key: str | None) -> None:
    """Revoke ACCESSKEY and make another like it. The new secret is shown only once."""
    _show_key(ledger, out, await ledger.rotate_key(accesskey, key=own_key(key, "key-rotate")))


@click.group()
def token() -> None:
    """Make, show and revoke tokens for the operator API."""


@token.command("create")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES))
@click.option("--label", default="", help="What it is for.")
@_addresses_option
@_expires_option
@click.option("--write", "file", metavar="FILE", help="Write it to this new file with mode 0600 instead of showing it.")
@own_key_option
@ledger_command(may_make=True)
async def token_create(
    ledger: CommandLedger, out: Output, key: str | None, file: str | None, expires: str | None, **given: Any
) -> None:
    """Make an operator token. It is shown only once."""
    if file is not None:
        check_place(Path(file))
    made = await ledger.create_token(**given, expires_ms=expiry_ms(expires), key=own_key(key, "token-create"))
    document, shown = ledger.document, made.token or "was shown when it was made, and is not kept"
    if file is not None:
        if made.token is None:
            raise SettingInvalid(
                f"The token under {key} was shown when it was made, and is not kept; use another --key."
            )
        write_secret_file(Path(file), made.token)
        document, shown = {**document, "token": None, "file": file}, f"is in {file}"
    out.document(document)
    out.line(f"token_id  {made.token_id}")
    out.line(f"token     {shown}")
    out.line(f"scopes    {', '.join(made.scopes)}")


@token.command("list")
@ledger_command()
async def token_list(ledger: CommandLedger, out: Output) -> None:
    """Show operator tokens, revoked and expired ones too. The fingerprint is the beginning of a token's SHA-256."""
    tokens: list[OperatorToken] = await all_pages(ledger, "tokens", ledger.tokens)
    out.document(ledger.document)
    columns = ("token_id", "fingerprint", "scopes", "state", "made", "last used", "from", "label")
    rows = (
        (t.token_id, t.fingerprint, t.scopes, _state(t), time_text(t.created_ms), _last_used(t), t.addresses, t.label)
        for t in tokens
    )
    out.table(columns, rows)


@token.command("revoke")
@click.argument("token_id")
@ledger_command()
async def token_revoke(ledger: CommandLedger, out: Output, token_id: str) -> None:
    """Revoke the token TOKEN_ID, at once and for ever."""
    await ledger.revoke_token(token_id)
    out.document(ledger.document)
    out.line(f"token {token_id} is revoked")


@click.command("get-balance")
@click.option("--accesskey", required=True, help="The access key.")
@click.option("--secret-file", metavar="FILE", help=f"The file with its secret (else the variable {SECRET_VARIABLE}).")
@click.option("--url", metavar="URL", help="The public listener (else SPOTLEDGER_URL, else http://127.0.0.1:8080).")
@proxy_option
@click.option("--account", type=click.Choice(ACCOUNTS), default="spot", show_default=True)
@click.option("--all", "with_empty", is_flag=True, help="Include coins with nothing in them.")
@json_option
@exit_on_error
def get_balance(
    accesskey: str,
    secret_file: str | None,
    url: str | None,
    proxy: str | None,
    account: str,
    with_empty: bool,
    out: Output,
) -> None:
    """Read balances as a trader does, with a signed request to the public listener."""
    try:
        api = SignedRequestAPI(accesskey, _secret(secret_file), url, proxy=proxy)
    except ValueError as problem:
        raise SettingInvalid(f"The request cannot be signed: {problem}.") from None
    with api:
        answer = read_balance(api, account)
    out.document(answer)
    out.balances(sides_of(answer), with_empty=with_empty)


def sides_of(answer: dict[str, Any]) -> Iterator[tuple[str, Decimal, Decimal]]:
    """Yield the coin, the available and the freeze of each balance in a public answer."""
    for coin, sides in answer["data"].items():
        yield coin, Decimal(sides["available"]), Decimal(sides["freeze"])


def read_balance(api: SignedRequestAPI, account: str = "spot") -> dict[str, Any]:
    """
    Return the answer of the public listener to a signed balance call.

    Raises:
        AccessKeyRefused, SignatureRefused, InvalidRequest, Unavailable: The answer is a refusal.
        TransportError: No readable answer arrived.
    """
    status, answer, _ = api.get_balance() if account == "spot" else api.get_funds(_ACCOUNT_NUMBERS[account])
    if not status or answer is None:
        raise TransportError("No readable answer came from the public listener; check its address with --url.")
    if answer.get("code") != 200:
        raise _ERRORS.get(answer.get("code", 0), Unavailable)(str(answer.get("info", "refused without a reason")))
    return answer


def _secret(file: str | None) -> str:
    if file is None:
        secret = os.environ.get(SECRET_VARIABLE, "")
        if not secret:
            raise SettingInvalid(f"The secret is missing; give it with --secret-file or {SECRET_VARIABLE}.")
        return secret
    try:
        return Path(file).read_text(encoding="utf-8", errors="replace").strip()
    except OSError as problem:
        raise unusable_file(problem, file, "secret file") from None
