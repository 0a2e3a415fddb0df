"""Finding entries: by key, reference, customer, coin, kind and actor, a bounded piece of the journal at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from spotledger.domain.accounts import accounts_about
from spotledger.domain.journal import Entry
from spotledger.storage.base import Looked, Store

#: Entries that the search for one page looks at: there is no index of kinds and actors.
SCANNED_ENTRIES: Final = 5_000


class Span(NamedTuple):
    """The entries after *after_seq*, up to *to_seq*."""

    after_seq: int
    to_seq: int


@dataclass(frozen=True, slots=True)
class Criteria:
    """
    What an entry has to have to be found; None: anything.

    An entry has a *customer* or a *coin* if it changes a balance of theirs; the customer may be a house account.
    """

    key: str | None = None
    reference: str | None = None
    customer: str | None = None
    coin: str | None = None
    kind: str | None = None
    actor: str | None = None

    def match(self, entry: Entry) -> bool:
        """Say whether *entry* has all of it."""
        return (
            self.key in (None, entry.key)
            and self.kind in (None, entry.kind)
            and self.actor in (None, entry.actor)
            and (self.reference is None or entry.request.get("reference") == self.reference)
            and (self.customer is self.coin is None or self._match_balances(entry))
        )

    def _match_balances(self, entry: Entry) -> bool:
        accounts = None if self.customer is None else accounts_about(self.customer)
        return any(
            self.coin in (None, coin) and (accounts is None or account in accounts)
            for account, coin, _, _ in entry.balances
        )


def look(store: Store, criteria: Criteria, span: Span, limit: int, look_at: int) -> Looked:
    """Return at most *limit* entries of *span* that match, after looking at *look_at* entries at most."""
    if span.after_seq >= span.to_seq:
        return Looked([], span.after_seq)
    entries, looked_to = _candidates(store, criteria, span, look_at)
    matching = [entry for entry in entries if entry.seq <= span.to_seq and criteria.match(entry)]
    if len(matching) > limit:
        return Looked(matching[:limit], matching[limit - 1].seq)
    return Looked(matching, min(looked_to, span.to_seq))


def _candidates(store: Store, criteria: Criteria, span: Span, look_at: int) -> Looked:
    """Return entries of *span* by the best index that there is; others up to the last one looked at cannot match."""
    after_seq, to_seq = span
    if criteria.key is not None:
        found = store.find_keys([criteria.key]) if criteria.key.isascii() else {}
        return Looked(store.entries_of([seq for seq in found.values() if seq > after_seq]), to_seq)
    if criteria.reference is not None:
        return store.entries_with_reference(criteria.reference, after_seq, look_at)
    if criteria.customer is not None:
        accounts = accounts_about(criteria.customer)
        seqs = store.account_seqs(accounts, criteria.coin, after_seq, look_at)
        looked_to = seqs[-1] if len(seqs) == look_at else to_seq
        return Looked(store.entries_of(up_to(seqs, to_seq)), looked_to)
    entries = store.entries(after_seq, min(look_at, to_seq - after_seq))
    return Looked(entries, entries[-1].seq if entries else after_seq)


def up_to(seqs: Sequence[int], to_seq: int) -> list[int]:
    """Return those of *seqs* that are at most *to_seq*."""
    return [seq for seq in seqs if seq <= to_seq]
