"""The operator API's calls about backups."""

from __future__ import annotations

from typing import Any, Final

from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from spotledger.http.operator_answers import Answer, Seq
from spotledger.http.operator_bodies import Body, decode
from spotledger.http.operator_calls import ADMIN, Call, Door, answer, query_of, read_body, route
from spotledger.ops.backup import Backups

#: How long the call that begins a backup waits for its end; a large one goes on after that.
BACKUP_WAIT_SECONDS: Final = 20.0


class BackupBody(Body):
    """``POST /v1/backups``: the name of the file, or none to have one after the time."""

    file: str | None = None


class BackupAnswer(Answer):
    """A backup that is running, or done; then with what it holds."""

    file: str
    state: str
    seq: Seq | UnsetType = UNSET
    bytes: int | UnsetType = UNSET


class BackupCalls:
    """The calls about backups. They need no idempotency key: a name that is taken is never written over."""

    def __init__(self, backups: Backups) -> None:
        self._backups = backups

    def routes(self, door: Door) -> list[Route]:
        """Return the routes."""
        return [
            route(
                door,
                "/v1/backups",
                POST=Call(ADMIN, self.make, takes=BackupBody, gives=BackupAnswer, statuses=(200, 202)),
            ),
            route(door, "/v1/backups/{file}", GET=Call(ADMIN, self.show, gives=BackupAnswer, statuses=(200, 202))),
        ]

    async def make(self, request: Request) -> Response:
        """Make a backup in the data folder; 200 where it is done, 202 where it goes on."""
        query_of(request)
        body = decode(await read_body(request) or b"{}", BackupBody)
        return _said(await self._backups.make(body.file, BACKUP_WAIT_SECONDS))

    async def show(self, request: Request) -> Response:
        """Say how far a backup is, or what it holds."""
        query_of(request)
        return _said(self._backups.state(request.path_params["file"]))


def _said(state: dict[str, Any]) -> Response:
    response = answer(state)
    response.status_code = 202 if state["state"] == "running" else 200
    return response
