"""The commands about access keys, operator tokens, and the trader's own view."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

import click

from spotledger.cli import show
from spotledger.cli.connection import Where
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
)
from spotledger.client.operator.api import OperatorClient
from spotledger.client.operator.operations import path_part
from spotledger.client.trader.signed import SignedRequestAPI
from spotledger.errors import (
    AccessKeyRefused,
    InvalidRequest,
    SettingInvalid,
    SignatureRefused,
    SpotledgerError,
    TransportError,
    Unavailable,
)
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


@click.group()
def key() -> None:
    """Make, see and revoke the access keys of customers."""


def _show_key(where: Where, answer: dict[str, Any]) -> None:
    if where.as_json:
        show.json_document(answer)
        return
    show.line(f"accesskey  {answer['accesskey']}")
    secret = answer["secretkey"]
    show.line(f"secretkey  {secret}" if secret else "secretkey  was shown when this key was made, and is not kept")
    show.line(f"customer   {answer['customer']}")
    show.line(f"may        {', '.join(answer['permissions'])}")
    if secret:
        show.line("Keep the secret now: it is not shown again.")


@key.command("create")
@click.option("--customer", required=True, help="Whose accounts it opens.")
@click.option("--permission", "permissions", multiple=True, required=True, type=click.Choice(PERMISSIONS))
@click.option("--label", default="", help="What it is for.")
@click.option("--address", "addresses", multiple=True, metavar="CIDR", help="It works only from here.")
@click.option("--expires", metavar="TIME", help="It works so long: 45s, 30m, 12h, 90d, 2w.")
@own_key_option
@ledger_command()
async def key_create(client: OperatorClient, where: Where, key: str | None, expires: str | None, **body: Any) -> None:
    """Make an access key. Its secret is shown this once."""
    body = {**body, "expires_ms": expiry_ms(expires)}
    _, _, answer = await client.call("POST", "/v1/keys", body, key=own_key(key, "key-create"))
    _show_key(where, answer)


@key.command("list")
@click.option("--customer", help="Only this customer's.")
@ledger_command()
async def key_list(client: OperatorClient, where: Where, customer: str | None) -> None:
    """Show access keys; their secrets are kept nowhere that could be shown."""
    answer = await all_pages(client, "/v1/keys", "keys", {"customer": customer})
    if where.as_json:
        show.json_document(answer)
        return
    rows = [
        (
            found["accesskey"],
            found["customer"],
            ", ".join(found["permissions"]),
            "revoked" if found["revoked_ms"] is not None else "in use",
            ", ".join(found["addresses"]),
            found["label"],
        )
        for found in answer["keys"]
    ]
    show.table(("accesskey", "customer", "may", "state", "from", "label"), rows)


@key.command("revoke")
@click.argument("accesskey")
@ledger_command()
async def key_revoke(client: OperatorClient, where: Where, accesskey: str) -> None:
    """Make ACCESSKEY stop working, at once and for ever."""
    _, _, answer = await client.call("DELETE", f"/v1/keys/{path_part(accesskey)}")
    if where.as_json:
        show.json_document(answer)
    else:
        show.line(f"{accesskey} of {answer['customer']} is revoked")


@key.command("rotate")
@click.argument("accesskey")
@own_key_option
@ledger_command()
async def key_rotate(client: OperatorClient, where: Where, accesskey: str, key: str | None) -> None:
    """Revoke ACCESSKEY and make another like it. Its secret is shown this once."""
    path = f"/v1/keys/{path_part(accesskey)}/rotate"
    _, _, answer = await client.call("POST", path, {}, key=own_key(key, "key-rotate"))
    _show_key(where, answer)


@click.group()
def token() -> None:
    """Make, see and revoke tokens for the operator API."""


@token.command("create")
@click.option("--scope", "scopes", multiple=True, required=True, type=click.Choice(SCOPES))
@click.option("--label", default="", help="What it is for.")
@click.option("--write", "file", metavar="FILE", help="Write it to this new file, mode 0600, and do not show it.")
@own_key_option
@ledger_command(may_make=True)
async def token_create(client: OperatorClient, where: Where, key: str | None, file: str | None, **body: Any) -> None:
    """Make an operator token. It is shown this once."""
    if file is not None and (Path(file).exists() or not Path(file).parent.is_dir()):
        found = "is there already, and is left as it is" if Path(file).exists() else "is in no folder that is there"
        raise SettingInvalid(f"{file} {found}; name a new file with --write.")
    _, _, answer = await client.call("POST", "/v1/tokens", body, key=own_key(key, "token-create"))
    shown = answer["token"] or "was shown when it was made, and is not kept"
    if file is not None:
        if answer["token"] is None:
            raise SettingInvalid(
                f"The token under {key} was shown when it was made, and is not kept; use another --key."
            )
        write_secret_file(Path(file), answer["token"])
        answer, shown = {**answer, "token": None, "file": file}, f"is in {file}"
    if where.as_json:
        show.json_document(answer)
    else:
        show.line(f"token_id  {answer['token_id']}")
        show.line(f"token     {shown}")
        show.line(f"scopes    {', '.join(answer['scopes'])}")


@token.command("list")
@ledger_command()
async def token_list(client: OperatorClient, where: Where) -> None:
    """Show operator tokens; the fingerprint is the beginning of a token's SHA-256."""
    answer = await all_pages(client, "/v1/tokens", "tokens", {})
    if where.as_json:
        show.json_document(answer)
        return
    rows = [
        (
            found["token_id"],
            found["fingerprint"],
            ", ".join(found["scopes"]),
            "revoked" if found["revoked_ms"] is not None else "in use",
            time_text(found["created_ms"]),
            found["label"],
        )
        for found in answer["tokens"]
    ]
    show.table(("token_id", "fingerprint", "scopes", "state", "made", "label"), rows)


@token.command("revoke")
@click.argument("token_id")
@ledger_command()
async def token_revoke(client: OperatorClient, where: Where, token_id: str) -> None:
    """Make the token TOKEN_ID stop working, at once and for ever."""
    _, _, answer = await client.call("DELETE", f"/v1/tokens/{path_part(token_id)}")
    if where.as_json:
        show.json_document(answer)
    else:
        show.line(f"token {token_id} is revoked")


@click.command("get-balance")
@click.option("--accesskey", required=True, help="The access key.")
@click.option("--secret-file", metavar="FILE", help=f"Where its secret is (else the variable {SECRET_VARIABLE}).")
@click.option("--url", metavar="URL", help="The public listener (else SPOTLEDGER_URL, else http://127.0.0.1:8080).")
@click.option("--account", type=click.Choice(ACCOUNTS), default="spot", show_default=True)
@click.option("--all", "with_empty", is_flag=True, help="Show listed coins with nothing in them too.")
@json_option
@exit_on_error
def get_balance(
    accesskey: str, secret_file: str | None, url: str | None, account: str, with_empty: bool, as_json: bool
) -> None:
    """Read balances as a trader does: with a signed request to the public listener."""
    try:
        api = SignedRequestAPI(accesskey, _secret(secret_file), url)
    except ValueError as problem:
        raise SettingInvalid(f"The request cannot be signed: {problem}.") from None
    with api:
        answer = read_balance(api, account)
    if as_json:
        show.json_document(answer)
    else:
        show.balances_table(answer["data"], with_empty=with_empty)


def read_balance(api: SignedRequestAPI, account: str = "spot") -> dict[str, Any]:
    """
    Return the public answer to a signed balance call.

    Raises:
        AccessKeyRefused, SignatureRefused, InvalidRequest, Unavailable: The answer is a refusal.
        TransportError: No answer came.
    """
    status, answer, _ = api.get_balance() if account == "spot" else api.get_funds(_ACCOUNT_NUMBERS[account])
    if not status or answer is None:
        raise TransportError("No answer that could be read came from the public listener; is it there?")
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
        raise SettingInvalid(f"The secret file {file} cannot be read: {problem.strerror}.") from None
