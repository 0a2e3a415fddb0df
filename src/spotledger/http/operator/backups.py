"""The operator API's calls about backups."""

from __future__ import annotations

from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, UnsetType

from spotledger import paths
from spotledger.archive.backup import NAME_PATTERN, Backups
from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.answers import Answer, Epoch, Seq, TimeMs
from spotledger.http.operator.bodies import Body, decode
from spotledger.http.operator.calls import ADMIN, Call, Endpoint, TokenCheck, Write, answer, query_of, route

#: How long the call that starts a backup waits for its end; a large backup goes on after that.
BACKUP_WAIT_SECONDS: Final = 20.0

FileField = Annotated[
    str | None,
    Meta(
        description="The name of the file in the folder backups of the data folder; by default one made of the time.",
        extra_json_schema={"pattern": f"^{NAME_PATTERN}$", "examples": ["monday.backup"]},
    ),
]


class BackupBody(Body):
    """``POST /v1/backups``: the name of the file, by default one made of the time."""

    file: FileField = None


class BackupAnswer(Answer):
    """A backup: ``running``, with the entries left and the entries in all, or ``done``, with its contents."""

    file: str
    state: str
    pages_left: int | UnsetType = UNSET
    pages: int | UnsetType = UNSET
    ledger_id: str | UnsetType = UNSET
    epoch: Epoch | UnsetType = UNSET
    seq: Seq | UnsetType = UNSET
    hash: str | UnsetType = UNSET
    booked_ms: TimeMs | UnsetType = UNSET
    schema_version: int | UnsetType = UNSET
    master_key_fingerprint: str | UnsetType | None = UNSET
    made_ms: TimeMs | UnsetType = UNSET
    bytes: int | UnsetType = UNSET


class BackupCalls:
    """The calls about backups. They need no idempotency key: an existing file is never overwritten."""

    def __init__(self, backups: Backups) -> None:
        self._backups = backups

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes."""
        return [
            route(
                token_check,
                paths.BACKUPS,
                POST=Call(
                    ADMIN,
                    write=self.make,
                    needs_key=False,
                    takes=BackupBody,
                    gives=BackupAnswer,
                    statuses=(200, 202),
                ),
            ),
            route(token_check, paths.BACKUP, GET=Call(ADMIN, self.show, gives=BackupAnswer, statuses=(200, 202))),
        ]

    async def make(self, call: Write) -> Reply:
        """Make a backup in the data folder; 200 if it is done, 202 if it is still running."""
        query_of(call.request)
        body = decode(call.body or b"{}", BackupBody)
        return _state_answer(await self._backups.make(body.file, BACKUP_WAIT_SECONDS))

    async def show(self, request: Request) -> Reply:
        """Return the progress of a backup, or its contents."""
        query_of(request)
        return _state_answer(self._backups.state(request.parameters["file"]))


def _state_answer(state: dict[str, Any]) -> Reply:
    return answer(BackupAnswer(**state), 202 if state["state"] == "running" else 200)
