"""
The operator API's calls about the master key, which seals the secrets of access keys.

No call takes a key, or the path of one: the service reads the file that its setting names, or one in its data folder.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final

from msgspec import UNSET, Meta, UnsetType

from spotledger import paths
from spotledger.errors import InvalidRequest
from spotledger.http.h1.request import Reply, Request
from spotledger.http.operator.answers import Answer, TimeMs
from spotledger.http.operator.bodies import Body, decode
from spotledger.http.operator.calls import ADMIN, Call, Endpoint, TokenCheck, Write, answer, query_of, route
from spotledger.ledger.writer import Writer
from spotledger.ops.master_keys import MasterKeyRotation, MasterKeyState

_PATTERN: Final = "^[0-9a-f]{32}$"
_FINGERPRINT: Final[dict[str, Any]] = {"type": ["string", "null"], "pattern": _PATTERN}


class RotateMasterKeyBody(Body):
    """The fingerprint of the key to bring into force, 32 hex digits; left out: the one that is set, or a new one."""

    fingerprint: Annotated[Any, Meta(extra_json_schema=_FINGERPRINT)] = None


class RetiredMasterKey(Answer):
    """A master key that was in force before, and when it was replaced. Backups from before need it."""

    fingerprint: str
    retired_ms: TimeMs


class MasterKeyNode(Answer):
    """A process of a fleet that is alive: the master keys that it holds, by fingerprint, and when it last said so."""

    place: str
    fingerprints: list[str]
    announced_ms: TimeMs


class MasterKeyAnswer(Answer):
    """
    The master key in force, by its fingerprint.

    ``source`` says where this node has it from: ``folder``, ``file`` or ``environment``. ``next`` is one that it could
    rotate to. While ``erased`` is false, what was sealed with an earlier key is still in the files of the store, and
    removing it is tried again. ``to_do`` is what is left to the operator.
    """

    fingerprint: str
    source: str
    erased: bool
    retired: list[RetiredMasterKey]
    nodes: list[MasterKeyNode]
    to_do: list[str]
    next: str | UnsetType = UNSET


class MasterKeyCalls:
    """The calls about the master key. They need no idempotency key: with a fingerprint, a repeat changes nothing."""

    def __init__(self, rotation: MasterKeyRotation, writer: Writer) -> None:
        self._rotation = rotation
        self._writer = writer

    def routes(self, token_check: TokenCheck) -> list[Endpoint]:
        """Return the routes."""
        rotate = Call(ADMIN, write=self.rotate, needs_key=False, takes=RotateMasterKeyBody, gives=MasterKeyAnswer)
        return [
            route(token_check, paths.MASTER_KEY, GET=Call(ADMIN, self.show, gives=MasterKeyAnswer)),
            route(token_check, paths.MASTER_KEY_ROTATION, POST=rotate),
        ]

    async def show(self, request: Request) -> Reply:
        """Return which master key is in force, and in a fleet which keys each node holds; never a key."""
        query_of(request)
        return answer(_shown(await self._writer.beside(self._rotation.state)))

    async def rotate(self, call: Write) -> Reply:
        """Bring the next master key into force, and seal every secret with it; access keys work on meanwhile."""
        asked = decode(call.body or b"{}", RotateMasterKeyBody).fingerprint
        if asked is not None and not (isinstance(asked, str) and re.fullmatch(_PATTERN[1:-1], asked)):
            raise InvalidRequest(
                "fingerprint is malformed; 32 hex digits in lower case would pass", field="fingerprint"
            )
        return answer(_shown(await self._writer.beside(lambda: self._rotation.rotate(asked))))


def _shown(state: MasterKeyState) -> MasterKeyAnswer:
    return MasterKeyAnswer(
        state.fingerprint,
        state.source,
        state.is_swept,
        [RetiredMasterKey(*item) for item in state.retired.items()],
        [MasterKeyNode(node.place, list(node.fingerprints), node.announced_ms) for node in state.holders],
        state.to_do,
        UNSET if state.next is None else state.next,
    )
