"""The labels of the operator tokens that entries name as their actors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from msgspec import UNSET, UnsetType

from spotledger.domain.journal import TOKEN_ACTOR, Entry
from spotledger.errors import LedgerCorrupt, SpotledgerError
from spotledger.security.bounded_dict import BoundedDict
from spotledger.security.tokens import Tokens

#: Half the number of labels that are kept in memory; a page names fewer tokens.
LABELS_GENERATION: Final = 1_000

_log = logging.getLogger("spotledger.operator")


class ActorLabels:
    """
    The labels of tokens, from bounded memory. A label never changes, so what is in memory is never stale.

    :meth:`learn` has to be called with entries before they are answered: :meth:`of` looks nowhere else.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._known: BoundedDict[str, str] = BoundedDict(LABELS_GENERATION)

    def note(self, actor: str, label: str) -> None:
        """Keep the *label* of the token that *actor* names."""
        self._known.put(actor, label)

    def of(self, actor: str) -> str | UnsetType:
        """Return the label of the token that *actor* names; UNSET if it names none, or one that is not there."""
        label = self._known.get(actor)
        return UNSET if label is None else label

    def lacks(self, actor: str) -> bool:
        """Say whether *actor* is a token whose label is not in memory."""
        return self._known.get(actor) is None and actor.startswith(TOKEN_ACTOR)

    async def learn(self, entries: Iterable[Entry]) -> None:
        """
        Read the labels of the tokens that *entries* name and that are not in memory, with one query in a thread.

        If they cannot be read, this is logged, and the entries are answered without them.
        """
        actors = {entry.actor for entry in entries}  # few
        token_ids = [actor[len(TOKEN_ACTOR) :] for actor in actors if self.lacks(actor)]
        if not token_ids:
            return
        try:
            found = await asyncio.to_thread(self._tokens.labels, token_ids)
        except (SpotledgerError, LedgerCorrupt) as problem:
            _log.warning("the labels of %d operator tokens could not be read: %s", len(token_ids), problem)
            return
        for token_id, label in found.items():
            self.note(TOKEN_ACTOR + token_id, label)
