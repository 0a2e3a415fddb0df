"""
How a command reaches the ledger: through the operator API, whether a server runs or not.

With ``--operator-url`` a command calls that server. Without it, a command calls the server that owns the data folder.
If there is none, it opens the ledger (in the folder, or in the database that is set) in its own process and calls the
operator API without a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final, NamedTuple

import httpx2

from spotledger import paths
from spotledger.client import AsyncOperatorLedger
from spotledger.client.async_driver import send_async
from spotledger.client.exchange import Failure, Send
from spotledger.client.operator.messages import Json
from spotledger.client.reading import read_object
from spotledger.client.transport import READ_TIMEOUT_S, check_base_url, open_http_async
from spotledger.errors import (
    DataFolderInUse,
    DataFolderUnusable,
    FileUnusable,
    ProtocolError,
    SettingInvalid,
    StoreUnavailable,
    TokenRefused,
    TransportError,
)
from spotledger.http.h1.transport import InProcessTransport
from spotledger.http.operator.app import OperatorApp
from spotledger.ledger.reads import LedgerReads
from spotledger.ops.replay_files import save_empty_memory
from spotledger.ops.runtime import FolderLock, claim_folder, open_runtime
from spotledger.ops.settings import Settings, load_settings
from spotledger.security.tokens import TOKEN_BYTES
from spotledger.storage.folder import LEDGER_FILE, LOCK_FILE, TOKEN_FILE, Owner, proof_of, read_owner, read_token

#: How long to wait for another command, or for a server that is starting, to release the folder.
OWNER_PATIENCE_SECONDS: Final = 5.0
OWNER_PAUSE_SECONDS: Final = 0.05
CHALLENGE_BYTES: Final = 32
#: How long a command waits for the next step of books that are made again; a segment takes some seconds.
BOOKS_PATIENCE_SECONDS: Final = 300.0
BOOKS_PAUSE_SECONDS: Final = 0.1
_OWN_ADDRESS: Final = "http://ledger.invalid"


class Where(NamedTuple):
    """Which ledger a command is about: its options, None for those that are not given."""

    data: str | None = None
    database: str | None = None
    config: str | None = None
    operator_url: str | None = None
    token_file: str | None = None
    proxy: str | None = None


class CommandLedger(AsyncOperatorLedger):
    """
    The ledger as a command calls it: each call is sent once.

    ``document`` is the last answer as it arrived. ``folder`` is the data folder; None with ``--operator-url``.
    """

    def __init__(
        self, url: str, token: str, *, proxy: str | None = None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        super().__init__(url, token, attempts=1, proxy=proxy, transport=transport, on_answer=self._keep)
        self.document: Json = {}
        self.folder: Path | None = None

    def _keep(self, document: Json) -> None:
        self.document = document


@contextlib.asynccontextmanager
async def connect(where: Where, *, may_make: bool = False) -> AsyncIterator[CommandLedger]:
    """
    Give a client of the ledger that *where* names.

    Args:
        where: The options of the command.
        may_make: Whether to make a ledger if there is none.

    Raises:
        DataFolderUnusable: There is no ledger, and *may_make* is false.
        SetupError: The ledger cannot be opened, or the server cannot be called, with these options.
    """
    if where.operator_url is not None:
        if where.token_file is None:
            raise SettingInvalid("--operator-url needs --token-file with an operator token of that server.")
        async with _at_server(where.operator_url, Path(where.token_file), where.proxy) as ledger:
            yield ledger
        return
    if where.proxy is not None:
        raise SettingInvalid("--proxy needs --operator-url; a server on this machine is called directly.")
    settings = load_settings({"data": where.data, "database": where.database}, os.environ, where.config).settings
    folder = settings.data
    if not may_make and settings.database is None:
        _check_there(folder)
    with contextlib.ExitStack() as stack:
        owner = await _claim_or_find_owner(folder, stack)
        if isinstance(owner, Owner):
            token_file = Path(where.token_file) if where.token_file else folder / TOKEN_FILE
            await _check_proof(folder, owner)
            connection = _at_server(str(owner.operator_url), token_file, named_by_us=not where.token_file)
        else:
            connection = _in_this_process(settings, owner, may_make=may_make)
        async with connection as ledger:
            ledger.folder = folder
            yield ledger


def _check_there(folder: Path) -> None:
    """Raise DataFolderUnusable if *folder* has neither a ledger nor an owner, such as a server of a fleet."""
    if not os.path.lexists(folder / LEDGER_FILE) and read_owner(folder) is None:
        raise DataFolderUnusable(
            f"There is no ledger in {folder}; name its folder with --data. "
            "A new one is made by: spotledger serve, coin add, or customer add.",
            path=str(folder),
        )


async def _claim_or_find_owner(folder: Path, stack: contextlib.ExitStack) -> Owner | FolderLock:
    """Return the server that owns *folder*, or lock it until *stack* ends; wait a moment for another command."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + OWNER_PATIENCE_SECONDS
    while True:
        owner = read_owner(folder)
        if owner is not None and owner.operator_url is not None:
            return owner
        try:
            return stack.enter_context(claim_folder(folder))
        except DataFolderInUse:
            if loop.time() > deadline:
                raise
        await asyncio.sleep(OWNER_PAUSE_SECONDS)


async def _check_proof(folder: Path, owner: Owner) -> None:
    """
    Have the service at the address in the note of *folder* prove that it wrote the note; nothing secret is sent.

    A note outlives a service that was killed, and somebody else may listen at its address by then.

    Raises:
        FileUnusable: It does not prove it.
        TransportError: Nothing answers there.
    """
    challenge = secrets.token_hex(CHALLENGE_BYTES)
    send = Send("GET", f"{check_base_url(str(owner.operator_url))}{paths.OWNER}", (("challenge", challenge),))
    async with open_http_async(folder, None, None, READ_TIMEOUT_S) as http:
        found = await send_async(http, send)
    lock = folder / LOCK_FILE
    if isinstance(found, Failure):
        raise TransportError(
            f"{lock} names the server at {owner.operator_url}, which does not answer: {found.reason}. Look whether "
            f"process {owner.pid} still runs."
        )
    proof = ""
    with contextlib.suppress(ProtocolError):
        proof = str(read_object(found.body).get("proof", ""))
    if not owner.proof_key or not hmac.compare_digest(proof.encode(), proof_of(owner.proof_key, challenge).encode()):
        raise FileUnusable(
            f"{lock} names the server at {owner.operator_url}, which does not prove that it owns {folder}; no token "
            f"was sent to it. Look what listens there, and who holds the lock (process {owner.pid} wrote the note).",
            path=str(lock),
        )


@contextlib.asynccontextmanager
async def _at_server(
    url: str, token_file: Path, proxy: str | None = None, *, named_by_us: bool = False
) -> AsyncIterator[CommandLedger]:
    """Give a client of a running server; if its token is refused, the error names the file."""
    async with ledger_at(url, read_token(token_file, named_by_us=named_by_us), proxy) as ledger:
        try:
            yield ledger
        except TokenRefused:
            raise TokenRefused(
                f"The operator token in {token_file} is revoked, has expired, is not for this address, or is not one of"
                " this ledger; name a file with one in use with --token-file. Where there is none, `spotledger token"
                " create` makes one without a server."
            ) from None


@contextlib.asynccontextmanager
async def _in_this_process(settings: Settings, lock: FolderLock, *, may_make: bool) -> AsyncIterator[CommandLedger]:
    """Open the ledger, and give a client of its operator API without a network."""
    if settings.database is not None and not may_make:
        from spotledger.ops.fleet import check_there  # imports the database driver

        check_there(settings)
    token = secrets.token_hex(TOKEN_BYTES)
    with open_runtime(settings, os.environ, lock) as runtime:
        await runtime.start()
        if runtime.is_new:
            save_empty_memory(settings.data, runtime.ledger.ledger_id, runtime.ledger.epoch)
        try:
            await _await_books(runtime.ledger)
            transport = InProcessTransport(OperatorApp(runtime, token))
            async with CommandLedger(_OWN_ADDRESS, token, transport=transport) as ledger:
                yield ledger
        finally:
            await runtime.stop()


async def _await_books(ledger: LedgerReads) -> None:
    """
    Wait until books that are damaged, or of another version, have been made again.

    The process that makes them ends with the command: one that did not wait would leave all of it to the next.
    """
    loop = asyncio.get_running_loop()
    said, deadline = None, 0.0
    while ledger.rebuilding is not None:
        if ledger.rebuilding != said:
            said, deadline = ledger.rebuilding, loop.time() + BOOKS_PATIENCE_SECONDS
        elif loop.time() > deadline:
            return  # what the command calls says how far they are
        await asyncio.sleep(BOOKS_PAUSE_SECONDS)
        with contextlib.suppress(StoreUnavailable):
            ledger.go_on_rebuilding()


def ledger_at(url: str, token: str, proxy: str | None = None) -> CommandLedger:
    """
    Return a client of the server at *url*.

    Raises:
        SettingInvalid: *url*, *token* or *proxy* has another form.
    """
    try:
        return CommandLedger(url, token, proxy=proxy)
    except ValueError as problem:
        raise SettingInvalid(f"The operator API cannot be called: {problem}.") from None
