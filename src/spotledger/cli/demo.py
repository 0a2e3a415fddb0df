"""``spotledger demo``: from an empty folder to a signed getBalance in one command."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shlex
import shutil
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from spotledger import paths
from spotledger.cli import demo_story
from spotledger.cli.connection import CommandLedger, ledger_at
from spotledger.cli.keys import read_balance, sides_of
from spotledger.cli.options import config_option, exit_on_error, setting_options
from spotledger.cli.output import Output
from spotledger.cli.service import log_to_stderr
from spotledger.client.operator.messages import path_of
from spotledger.client.trader.signed import SignedRequestAPI
from spotledger.errors import DataFolderUnusable, FileUnusable
from spotledger.http.serve import Listening, serve
from spotledger.ops.settings import load_settings
from spotledger.storage.folder import TOKEN_FILE, read_secret, read_token, write_secret_file

DEMO_FOLDER: Final = "data/demo"
DEMO_KEY_FILE: Final = "demo.key"


class DemoKey(NamedTuple):
    """The access key of the demo's customer."""

    accesskey: str
    secretkey: str


@click.command()
@click.option("--once", is_flag=True, help="Stop after the answer instead of serving.")
@setting_options
@config_option
@exit_on_error
def demo(flags: Mapping[str, str | None], config: str | None, once: bool) -> None:
    """Start the service with demo customers, make a signed getBalance, and keep serving."""
    # Only the flag names the folder: demo customers must not get into the ledger of SPOTLEDGER_DATA or a database.
    settings = load_settings({**flags, "data": flags["data"] or DEMO_FOLDER}, os.environ, config).settings
    settings = dataclasses.replace(settings, database=None, read_database=None, workers=1)
    log_to_stderr(settings)

    async def perform(listening: Listening) -> bool:
        folder = settings.data
        async with ledger_at(listening.operator_url, read_token(folder / TOKEN_FILE)) as ledger:
            await _check_is_demo(ledger, folder)
            new = await demo_story.tell(ledger)
            key = await _demo_key(ledger, folder / DEMO_KEY_FILE)
        _show_start(listening, folder, new)
        with SignedRequestAPI(key.accesskey, key.secretkey, listening.public_url) as api:
            answer = await asyncio.to_thread(read_balance, api)
        _show_answer(answer)
        _show_next(listening, folder)
        if not once:
            Output.text("\nServing. Ctrl-C stops it; the next start continues with this ledger.")
        return not once

    serve(settings, os.environ, perform)


async def _check_is_demo(ledger: CommandLedger, folder: Path) -> None:
    first = (await ledger.entries(limit=1)).entries
    if first and first[0].key != demo_story.FIRST_KEY:
        raise DataFolderUnusable(
            f"The ledger in {folder} is not the demo's; name another folder with --data.", path=str(folder)
        )


async def _demo_key(ledger: CommandLedger, file: Path) -> DemoKey:
    """Return the access key of an earlier start if it is still in use, else a new one."""
    keys = (await ledger.keys(demo_story.CUSTOMER)).keys
    in_use = {found.accesskey for found in keys if found.revoked_ms is None}
    kept = _read_demo_key(file)
    if kept is not None and kept.accesskey in in_use:
        return kept
    made = await ledger.create_key(demo_story.CUSTOMER, ["read"], "demo", key=f"demo-key-{uuid.uuid4()}")
    key = DemoKey(made.accesskey, str(made.secretkey))
    file.unlink(missing_ok=True)
    write_secret_file(file, json.dumps(key._asdict()))
    return key


def _read_demo_key(file: Path) -> DemoKey | None:
    try:
        kept = json.loads(read_secret(file, "demo key", named_by_us=True))
        return DemoKey(str(kept["accesskey"]), str(kept["secretkey"]))
    except (FileUnusable, ValueError, KeyError, TypeError):
        return None


def _show_start(listening: Listening, folder: Path, new: int) -> None:
    Output.text(f"The service runs, on the ledger in {folder}.")
    Output.text(f"  traders    {listening.public_url}")
    Output.text(f"  operators  {listening.operator_url}   token: {folder / TOKEN_FILE}")
    if new:
        Output.text(
            f"\nBooked {new} operations: coins, customers, deposits, freezes, unfreezes, withdrawals, transfers."
        )
    else:
        Output.text("\nThe operations were booked by an earlier start; none was booked again.")


def _show_answer(answer: dict[str, Any]) -> None:
    Output.text(f"\nA signed getBalance of {demo_story.CUSTOMER}, made with spotledger.client:\n")
    Output().balances(sides_of(answer), with_empty=True)
    Output.text("\nThe same answer as it came:\n")
    Output.json(answer)


def curl_lines(public_url: str, file: Path) -> str:
    """
    Return shell lines that sign a getBalance with the access key in *file*, and send it with curl.

    Neither the secret nor the signed URL is an argument of a program, because those are in the list of processes.
    """
    return f"""python3 -c '
import hashlib, hmac, json, sys, time
key = json.load(open(sys.argv[1]))
text = "accesskey=%s&nonce=%d" % (key["accesskey"], time.time() * 1000)
signature = hmac.new(key["secretkey"].encode(), text.encode(), hashlib.sha256).hexdigest()
print("url = {public_url}{paths.GET_BALANCE}?%s&signature=%s" % (text, signature))
' {shlex.quote(str(file))} | curl -s --config -; echo"""


def _show_next(listening: Listening, folder: Path) -> None:
    key_file, token_file = folder / DEMO_KEY_FILE, shlex.quote(str(folder / TOKEN_FILE))
    program = "spotledger" if shutil.which("spotledger") else shlex.quote(sys.argv[0])
    data = shlex.quote(str(folder))
    Output.text("\nThe same call by curl; paste it:\n")
    Output.text(curl_lines(listening.public_url, key_file))
    url = listening.operator_url
    Output.text(
        f"""
In Python:

    import json
    from spotledger.client import SpotClient
    key = json.load(open({json.dumps(str(key_file), ensure_ascii=False)}))
    with SpotClient(key["accesskey"], key["secretkey"], "{listening.public_url}") as client:
        print(client.balances()["usdt"])

As the exchange, on the command line (the key names each write, so it happens once):

    {program} freeze alice usdt 100 --reference order-2001 --key my-first-freeze --data {data}
    {program} holds alice --data {data}
    {program} balances alice --data {data}

As the exchange, over HTTP:

    token() {{ printf 'Authorization: Bearer %s' "$(cat {token_file})"; }}
    token | curl -s -H @- {url}{path_of(paths.CUSTOMER_BALANCES, customer="alice")}
    token | curl -s -H @- -H "Idempotency-Key: my-first-deposit" \\
         -d '{{"customer":"bob","coin":"usdt","amount":"12.5"}}' {url}{paths.of_collection("deposits")}"""
    )
