"""
The pass of an audit over the entries: everything about money is derived from them again, in order, once.

It keeps what stands at the entry that was read last (a line for each account and coin, the open holds), and, of the
segment that is being read, what its derived tables should say. Both are bounded: by the accounts that ever had
something, by the holds that are open, by the size of a segment.

Where something is wrong it is noted, and what the journal says is taken over, so that one fault is not found again in
all that follows.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b, sha256
from typing import Any, Final

import msgspec

from spotledger.audit.books import BooksRead
from spotledger.audit.entries import EntryRead, decode, decoded
from spotledger.audit.findings import Findings
from spotledger.audit.shortcuts import SHORTCUTS
from spotledger.audit.requests import CHECKS
from spotledger.domain.amounts import MAX_SCALE
from spotledger.errors import Kept

_DIGEST_BYTES: Final = 16
_KEY_LENGTH: Final = 64
_WITHOUT_POSTINGS: Final = frozenset({"list_coin", "register_customer"})


class JournalPass(BooksRead):
    """The state of the pass; :meth:`take` reads on."""

    def __init__(self, findings: Findings, genesis: bytes, entry_at: Callable[[int], bytes | None]) -> None:
        """
        Start before the first entry.

        Args:
            findings: Where faults are noted.
            genesis: The hash that the first entry is chained to.
            entry_at: Returns the body of an entry that was read before, for what is rarely asked.
        """
        super().__init__(findings)
        self._entry_at = entry_at
        self.booked_ms = 0
        #: The hash of the last entry as it is kept; None where the entry is missing.
        self.link: bytes | None = genesis
        self.reversals: dict[int, int] = {}
        self.postings = self.refusals = 0
        #: The digests of the keys since the last segment that was compared with its tables.
        self.keys: dict[bytes, int] = {}

    def forget_collected(self) -> None:
        """Forget what was collected of the entries: their tables are compared."""
        super().forget_collected()
        self.keys.clear()

    # --- the chain --------------------------------------------------------------------------------------

    def take(self, rows: list[tuple[int, bytes, bytes]], last: int) -> None:
        """Take the entries in *rows*, which are all that there are up to *last*, in order."""
        entries = self._sound(rows, last)
        if entries is None:
            self._take_each(rows, last)
            return
        for entry in entries:
            self.seq += 1
            self._book(entry)

    def _sound(self, rows: list[tuple[int, bytes, bytes]], last: int) -> list[EntryRead] | None:
        """
        Return the entries in *rows* where none is missing, and their chain, times and keys are as they should be.

        All of them are compared as wholes; None where anything differs.
        """
        first = self.seq + 1
        if self.link is None or len(rows) != last - self.seq or not rows or rows[-1][0] != last:
            return None
        seqs, bodies, hashes = zip(*rows, strict=True)
        links = (self.link, *hashes[:-1])
        if [sha256(link + body).digest() for link, body in zip(links, bodies, strict=True)] != list(hashes):
            return None
        try:
            entries = [decode(body) for body in bodies]
        except (msgspec.DecodeError, RecursionError):
            return None
        times = [entry.booked_ms for entry in entries]
        if (
            seqs != tuple(range(first, last + 1))
            or seqs != tuple([entry.seq for entry in entries])
            or times != sorted(times)
            or times[0] < self.booked_ms
            or not all(entry.request.is_of_the_format() for entry in entries)
            or not self._take_keys(entries, seqs)
        ):
            return None
        self.booked_ms, self.link = times[-1], hashes[-1]
        return entries

    def _take_keys(self, entries: list[EntryRead], seqs: tuple[int, ...]) -> bool:
        """Take the keys of all *entries*, if each is well-formed and new to the segment; else none of them."""
        keys = [entry.key for entry in entries]
        together = "".join(keys)
        if not together.isascii() or not together.isprintable() or len(max(keys, key=len)) > _KEY_LENGTH or "" in keys:
            return False
        if " " in together and any((" " in entry.key) != (entry.kind == "expire") for entry in entries):
            return False
        digests = [blake2b(key, digest_size=_DIGEST_BYTES).digest() for key in map(str.encode, keys)]
        new = dict(zip(digests, seqs, strict=True))
        if len(new) < len(keys) or not self.keys.keys().isdisjoint(digests):
            return False
        self.keys.update(new)
        return True

    def _take_each(self, rows: list[tuple[int, bytes, bytes]], last: int) -> None:
        """Take the entries in *rows* one by one, and name what is wrong."""
        seq, link = self.seq, self.link
        for row_seq, body, kept_hash in rows:
            seq += 1
            if row_seq != seq:
                self._missing(seq, row_seq - 1)
                seq, link = row_seq, None
            if link is not None and sha256(link + body).digest() != kept_hash:
                self._note("chain_broken", seq, "hash", kept_hash, sha256(link + body).digest())
            link = kept_hash
            try:
                entry = decode(body)
            except (msgspec.DecodeError, RecursionError) as error:
                self._note("entry_unreadable", seq, "body", str(error), "an entry")
                continue
            self.seq = seq
            self._enter(entry)
        if seq < last:
            self._missing(seq + 1, last)
            seq, link = last, None
        self.seq, self.link = seq, link

    def _missing(self, first: int, last: int) -> None:
        self._note("entry_missing", first, "journal", f"no entries {first} to {last}", "entries without a gap")

    def _enter(self, entry: EntryRead) -> None:
        seq, key, kind = self.seq, entry.key, entry.kind
        booked_ms = entry.booked_ms
        if entry.seq != seq:
            self._note("entry_out_of_place", seq, "seq", f"entry {entry.seq}", f"entry {seq}")
        if booked_ms < self.booked_ms:
            self._note("time_falls", seq, "booked_ms", booked_ms, f"{self.booked_ms} or later")
        self.booked_ms = booked_ms
        digest = blake2b(key.encode(errors="replace"), digest_size=_DIGEST_BYTES).digest()
        if digest in self.keys:
            self._note("key_repeated", seq, "key", key, f"a key that entry {self.keys[digest]} has not")
        self.keys[digest] = seq
        if (" " in key) != (kind == "expire") or not (
            0 < len(key) <= _KEY_LENGTH and key.isascii() and key.isprintable()
        ):
            self._note("key_malformed", seq, "key", key, "1 to 64 printable ASCII characters without blanks")
        request = entry.request
        if not request.is_of_the_format():
            self._note("request_differs", seq, "request", f"{request.format}, {request.op}", "neither format nor op")
        self._book(entry)

    def _book(self, entry: EntryRead) -> None:
        """Take what an entry says of money, coins and customers."""
        if entry.refusal is not None:
            self._refusal(entry, entry.refusal)
        elif entry.postings:
            self.postings += len(entry.postings)
            quick = SHORTCUTS.get(entry.kind)
            lines = quick(self, entry) if quick is not None else None
            if not lines and not entry.is_placed():
                found = "a posting about a balance that is not there"
                self._note("entry_unreadable", self.seq, "postings", found, "one of the balances of the entry")
                return
            if quick is not None and not lines and self.bring_up(entry):
                lines = quick(self, entry)
            if lines:
                self.take_over(entry, lines)
                return
            try:
                self._post(entry)
            except ValueError:  # Python writes no number of more than 4,300 digits
                self._note("entry_unreadable", self.seq, "units", "numbers too long to write", "less than 10^38")
        else:
            self._without_postings(entry)

    def _post(self, entry: EntryRead) -> None:
        check = CHECKS.get(entry.kind)
        if check is None:
            self._note("kind_unknown", self.seq, "kind", entry.kind, f"one of {', '.join(CHECKS)}")
        self.bring_up(entry)
        self.post(entry)
        if check is not None and (expected := check(entry, self)) is not None:
            code = "reversal_wrong" if entry.kind == "reverse" else "request_differs"
            self._note(code, self.seq, "postings", str(entry.lines()), expected)

    # --- entries without ----------------------------------------------------------------------------------

    def _refusal(self, entry: EntryRead, refusal: dict[str, Any]) -> None:
        self.refusals += 1
        if entry.postings or entry.balances or entry.holds:
            self._note("refusal_malformed", self.seq, "postings", "a refusal with postings", "none")
        if entry.kind not in CHECKS and entry.kind not in _WITHOUT_POSTINGS:
            self._note("kind_unknown", self.seq, "kind", entry.kind, f"one of {', '.join(CHECKS)}")
        formed = (
            isinstance(refusal.get("code"), str)
            and refusal["code"] in _KEPT_CODES
            and isinstance(refusal.get("detail"), str)
            and isinstance(refusal.get("details"), dict)
        )
        if not formed:
            self._note("refusal_malformed", self.seq, "refusal", refusal, "code, detail and details of a kept refusal")

    def _without_postings(self, entry: EntryRead) -> None:
        request, seq = entry.request, self.seq
        if entry.balances or entry.holds:
            self._note("balance_after_differs", seq, "balances", "balances or holds", "none where nothing is posted")
        if entry.kind == "list_coin":
            coin, scale = request.coin, request.scale
            if coin is None or scale is None or not 0 <= scale <= MAX_SCALE or coin in self.coins:
                self._note(
                    "coin_listed_wrong", seq, "request", f"{coin} with scale {scale}", "a coin, once, scale 0-18"
                )
            if coin is not None and scale is not None:
                self.coins.setdefault(coin, (scale, seq))
        elif entry.kind == "register_customer":
            customer = request.customer
            if customer is None or customer in self.customers:
                self._note("customer_registered_wrong", seq, "request", customer, "a customer, once")
            else:
                self.customers[customer] = seq
        elif entry.kind in CHECKS:
            if entry.kind != "reverse":
                self._note("request_differs", seq, "postings", "none", f"those of a {entry.kind}")
                return
            if (expected := CHECKS["reverse"](entry, self)) is not None:
                self._note("reversal_wrong", seq, "postings", "none", expected)
        else:
            self._note("kind_unknown", seq, "kind", entry.kind, f"one of {', '.join(CHECKS)}")

    # --- what the checks of requests ask --------------------------------------------------------------------

    def earlier(self, seq: int) -> EntryRead | None:
        """Return an entry before the one that is being read, or None where it cannot be read."""
        body = self._entry_at(seq) if 0 < seq < self.seq else None
        return None if body is None else decoded(body)

    def reverse(self, seq: int) -> None:
        """Remember that the entry that is being read reverses the entry *seq*."""
        if seq in self.reversals:
            self._note("reversed_twice", self.seq, f"entry {seq}", f"reversed by {self.reversals[seq]} too", "once")
        self.reversals.setdefault(seq, self.seq)


def _kept_codes(kind: type[Kept] = Kept) -> frozenset[str]:
    return frozenset({kind.code}).union(*(_kept_codes(below) for below in kind.__subclasses__()))


_KEPT_CODES: Final = _kept_codes() - {Kept.code}
