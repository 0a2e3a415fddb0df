"""
How a command reaches the ledger: one client for the operator API, whether a server runs or not.

With ``--operator-url`` it calls that server. Else it looks who owns the data folder: a server there is called over the
network; where there is none, the ledger (in the folder, or in the database that is set) is opened in this process, and
its operator API called without a network.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx2

from spotledger.client.operator.api import OperatorClient
from spotledger.errors import DataFolderInUse, DataFolderUnusable, SettingInvalid, TokenRefused
from spotledger.http.h1.transport import InProcessTransport
from spotledger.http.operator.app import OperatorApp
from spotledger.ops.runtime import FolderLock, Runtime, claim_folder, open_runtime
from spotledger.ops.settings import load_settings
from spotledger.security.tokens import TOKEN_BYTES
from spotledger.storage.folder import LEDGER_FILE, TOKEN_FILE, Owner, read_owner, read_token

#: Another command, or a server that is starting, may own the folder for a moment.
OWNER_PATIENCE_SECONDS: Final = 5.0
OWNER_PAUSE_SECONDS: Final = 0.05
_OWN_ADDRESS: Final = "http://ledger.invalid"


@dataclass(frozen=True, slots=True)
class Where:
    """Which ledger a command is about, and how its answer is printed."""

    data: str | None
    config: str | None
    operator_url: str | None
    token_file: str | None
    as_json: bool
    database: str | None = None


@contextlib.asynccontextmanager
async def connect(where: Where, *, may_make: bool = False) -> AsyncIterator[OperatorClient]:
    """
    Give a client of the ledger that *where* names.

    Args:
        where: The options of the command.
        may_make: Whether a ledger may be made where there is none.

    Raises:
        DataFolderUnusable: There is no ledger, and none may be made.
        SetupError: The ledger cannot be opened, or the server cannot be called, as it is set up.
    """
    if where.operator_url is not None:
        if where.token_file is None:
            raise SettingInvalid("--operator-url needs --token-file with an operator token of that server.")
        token_file = Path(where.token_file)
        async with _client(where.operator_url, read_token(token_file)) as client:
            with _told_of_its_token(token_file):
                yield client
        return
    in_force = load_settings({"data": where.data, "database": where.database}, os.environ, where.config)
    folder = in_force.settings.data
    is_embedded = in_force.settings.database is None
    # The folder of a node of a fleet has no ledger in it; whoever runs there knows where it is.
    if is_embedded and not may_make and not (folder / LEDGER_FILE).exists() and read_owner(folder) is None:
        raise DataFolderUnusable(
            f"There is no ledger in {folder}; name its folder with --data. "
            "A new one is made by: spotledger serve, coin add, or customer add.",
            path=str(folder),
        )
    with contextlib.ExitStack() as stack:
        owner = await _claim_or_find_owner(folder, stack)
        if isinstance(owner, Owner):
            token_file = Path(where.token_file) if where.token_file else folder / TOKEN_FILE
            async with near_client(str(owner.operator_url), read_token(token_file)) as client:
                with _told_of_its_token(token_file):
                    yield client
        else:
            if not is_embedded and not may_make:
                from spotledger.ops.fleet import check_there  # the driver is loaded where it is needed

                check_there(in_force.settings)
            runtime = stack.enter_context(open_runtime(in_force.settings, os.environ, owner))
            async with _within(runtime) as client:
                yield client


@contextlib.contextmanager
def _told_of_its_token(token_file: Path) -> Iterator[None]:
    """Name the file whose token a server does not let in."""
    try:
        yield
    except TokenRefused:
        raise TokenRefused(
            f"The operator token in {token_file} is revoked, or not one of this ledger; name a file with one in use "
            "with --token-file. Where there is none, `spotledger token create` makes one without a server."
        ) from None


async def _claim_or_find_owner(folder: Path, stack: contextlib.ExitStack) -> Owner | FolderLock:
    """Return the server that owns *folder*, or own it for the length of *stack*; wait for who has it for a moment."""
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


@contextlib.asynccontextmanager
async def _within(runtime: Runtime) -> AsyncIterator[OperatorClient]:
    """Give a client of the operator API over a ledger that this process owns."""
    token = secrets.token_hex(TOKEN_BYTES)
    await runtime.start()
    try:
        transport = InProcessTransport(OperatorApp(runtime, token))
        async with OperatorClient(_OWN_ADDRESS, token, transport) as client:
            yield client
    finally:
        await runtime.stop()


def near_client(url: str, token: str) -> OperatorClient:
    """Return a client of a server on this machine: no proxy that the environment names comes between."""
    return _client(url, token, httpx2.AsyncHTTPTransport())


def _client(url: str, token: str, transport: httpx2.AsyncBaseTransport | None = None) -> OperatorClient:
    try:
        return OperatorClient(url, token, transport)
    except ValueError as problem:
        raise SettingInvalid(f"The operator API cannot be called: {problem}.") from None
