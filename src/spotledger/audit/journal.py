"""
The pass of an audit over the entries: it reads them once, in order, and derives everything about money again.

It keeps the books after the last entry read, and what the derived tables of the current segment should contain. Memory
is bounded by the accounts that were ever used, the open holds and the size of a segment.

A fault is noted, and the value in the journal is taken over, so that one fault is not found again in every later entry.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b, sha256
from typing import Any, Final

import msgspec

from spotledger.audit.books import BooksRead
from spotledger.audit.entries import DUST, EXTERNAL, FEES, EntryRead, decode, decoded
from spotledger.audit.findings import Findings
from spotledger.audit.requests import CHECKS
from spotledger.audit.shortcuts import SHORTCUTS
from spotledger.domain.accounts import check_house_name, house_name
from spotledger.domain.amounts import MAX_SCALE, UNITS_LIMIT
from spotledger.domain.journal import ACTOR, LEDGER, LIBRARY, epoch_key
from spotledger.domain.positions import EPOCH_LIMIT, Epochs
from spotledger.errors import (
    BalanceTooLarge,
    HouseShort,
    InvalidRequest,
    Kept,
    UnknownCoin,
    UnknownCustomer,
    UnknownEntry,
    UnknownHold,
)

_DIGEST_BYTES: Final = 16
_KEY_LENGTH: Final = 128
#: The operations that have no postings, by kind; those that have some are in :data:`CHECKS`.
WITHOUT_POSTINGS: Final = frozenset({"list_coin", "register_customer", "open_house_account"})
#: The house accounts that are open from the beginning.
_FIRST: Final = frozenset({EXTERNAL[0], FEES[0], DUST[0]})
#: The kinds of entries that the ledger writes by itself, under keys with a blank; nothing else does.
_OWN_KINDS: Final = frozenset({"expire", "begin_epoch"})


class JournalPass(BooksRead):
    """The state of the pass; :meth:`take` continues it."""

    def __init__(self, findings: Findings, genesis: bytes, entry_at: Callable[[int], bytes | None]) -> None:
        """
        Start before the first entry.

        Args:
            findings: Faults are added to it.
            genesis: The hash that the first entry is chained to.
            entry_at: Returns the body of an earlier entry, or None; called rarely.
        """
        super().__init__(findings)
        self._entry_at = entry_at
        self.booked_ms = 0
        #: The stored hash of the last entry; None if the entry is missing.
        self.link: bytes | None = genesis
        self.genesis = genesis
        self.reversals: dict[int, int] = {}
        self.epochs = Epochs()
        self.postings = self.refusals = 0
        #: The digests of the keys since the last comparison of a segment with its tables, and their entries.
        self.keys: dict[bytes, int] = {}
        #: The references of requests since then, each with its entry.
        self.references: list[tuple[str, int]] = []
        #: Actors, each with a kind of entry, that were found right together last.
        self._right_actors: set[tuple[str, str]] = set()

    def forget_collected(self) -> None:
        """Forget what was collected, once it is compared with the tables."""
        super().forget_collected()
        self.keys.clear()
        self.references.clear()

    # --- the chain --------------------------------------------------------------------------------------

    def take(self, rows: list[tuple[int, bytes, bytes]], last: int) -> None:
        """Take the entries in *rows*, all that the journal has up to *last*, in order."""
        entries = self._sound(rows, last)
        if entries is None:
            self._take_each(rows, last)
            return
        for entry in entries:
            self.seq += 1
            self._book(entry)

    def _sound(self, rows: list[tuple[int, bytes, bytes]], last: int) -> list[EntryRead] | None:
        """
        Take the chain, times and keys of *rows*, and return their entries, if no entry is missing and all is in order.

        The rows are compared as a whole. If anything differs, nothing is taken and None is returned.
        """
        if not self._is_chained(rows, last):
            return None
        try:
            entries = [decode(body) for _, body, _ in rows]
        except (msgspec.DecodeError, RecursionError):
            return None
        if not self._is_in_order(entries) or not self._have_right_actors(entries) or not self._take_keys(entries):
            return None
        self.booked_ms, self.link = entries[-1].booked_ms, rows[-1][2]
        return entries

    def _is_chained(self, rows: list[tuple[int, bytes, bytes]], last: int) -> bool:
        """Say whether *rows* are all entries up to *last*, each with the hash that its content leads to."""
        if self.link is None or not rows:
            return False
        seqs, bodies, hashes = zip(*rows, strict=True)
        if len(rows) != last - self.seq or seqs != tuple(range(self.seq + 1, last + 1)):
            return False
        if {*map(type, bodies), *map(type, hashes)} != {bytes}:
            return False
        links = (self.link, *hashes[:-1])
        return [sha256(link + body).digest() for link, body in zip(links, bodies, strict=True)] == list(hashes)

    def _is_in_order(self, entries: list[EntryRead]) -> bool:
        """Say whether the numbers, times and formats of *entries*, the next ones, are right."""
        first = self.seq + 1
        times = [self.booked_ms, *[entry.booked_ms for entry in entries]]
        others = [entry for entry in entries if entry.request.op is not None or entry.request.format is not None]
        seqs = [entry.seq for entry in entries]
        return not others and times == sorted(times) and seqs == list(range(first, first + len(entries)))

    def _have_right_actors(self, entries: list[EntryRead]) -> bool:
        """Say whether each of *entries* names an actor that it can have; most are known to be right."""
        found = {(entry.actor, entry.kind) for entry in entries}
        if found <= self._right_actors:
            return True
        if any(_is_wrong_actor(*names) for names in found):
            return False
        self._right_actors = found
        return True

    def _take_keys(self, entries: list[EntryRead]) -> bool:
        """Take the keys of *entries* if each is well-formed and new to the segment, else none of them."""
        keys = [entry.key for entry in entries]
        together = "".join(keys)
        if not together.isascii() or not together.isprintable() or len(max(keys, key=len)) > _KEY_LENGTH or "" in keys:
            return False
        if " " in together and any((" " in entry.key) != (entry.kind in _OWN_KINDS) for entry in entries):
            return False
        digests = [blake2b(key, digest_size=_DIGEST_BYTES).digest() for key in map(str.encode, keys)]
        new = dict(zip(digests, range(self.seq + 1, self.seq + 1 + len(keys)), strict=True))
        if len(new) < len(keys) or not self.keys.keys().isdisjoint(digests):
            return False
        self.keys.update(new)
        return True

    def _take_each(self, rows: list[tuple[int, bytes, bytes]], last: int) -> None:
        """Take the entries in *rows* one by one, and note what is wrong."""
        seq, link = self.seq, self.link
        for row_seq, body, kept_hash in rows:
            if row_seq <= seq:
                self._note("row_repeated", row_seq, f"entry {row_seq}", "a second row", "one row")
                continue
            seq += 1
            if row_seq != seq:
                self._note_missing(seq, row_seq - 1)
                seq, link = row_seq, None
            if not isinstance(body, bytes) or not isinstance(kept_hash, bytes):
                self._note("entry_unreadable", seq, "row", f"{type(body)}, {type(kept_hash)}", "a text and a hash")
                link = None
                continue
            if link is not None and sha256(link + body).digest() != kept_hash:
                self._note("chain_broken", seq, "hash", kept_hash, sha256(link + body).digest())
            link = kept_hash
            try:
                entry = decode(body)
            except (msgspec.DecodeError, RecursionError) as error:
                self._note("entry_unreadable", seq, "body", str(error), "an entry")
                continue
            self.seq = seq
            self._check_header(entry)
            self._book(entry)
        if seq < last:
            self._note_missing(seq + 1, last)
            seq, link = last, None
        self.seq, self.link = seq, link

    def _note_missing(self, first: int, last: int) -> None:
        self._note("entry_missing", first, "journal", f"no entries {first} to {last}", "entries without a gap")

    def _check_header(self, entry: EntryRead) -> None:
        """Check and take over the number, time and key of *entry*, and check the format of its request."""
        seq, key, booked_ms = self.seq, entry.key, entry.booked_ms
        if entry.seq != seq:
            self._note("entry_out_of_place", seq, "seq", f"entry {entry.seq}", f"entry {seq}")
        if booked_ms < self.booked_ms:
            self._note("time_falls", seq, "booked_ms", booked_ms, f"{self.booked_ms} or later")
        self.booked_ms = booked_ms
        digest = blake2b(key.encode(errors="replace"), digest_size=_DIGEST_BYTES).digest()
        if digest in self.keys:
            self._note("key_repeated", seq, "key", key, f"another key than entry {self.keys[digest]}")
        self.keys[digest] = seq
        is_printable = 0 < len(key) <= _KEY_LENGTH and key.isascii() and key.isprintable()
        if not is_printable or (" " in key) != (entry.kind in _OWN_KINDS):
            expected = f"1 to {_KEY_LENGTH} printable ASCII characters without blanks"
            self._note("key_malformed", seq, "key", key, expected)
        request = entry.request
        if request.op is not None or request.format is not None:
            self._note("request_differs", seq, "request", f"{request.format}, {request.op}", "neither format nor op")
        if _is_wrong_actor(entry.actor, entry.kind):
            expected = "ledger" if entry.kind in _OWN_KINDS else "token:…, key:… or library"
            self._note("actor_wrong", seq, "actor", entry.actor, expected)

    def _book(self, entry: EntryRead) -> None:
        """Apply what an entry does to balances, holds, coins and customers."""
        if entry.request.reference is not None:
            self.references.append((entry.request.reference, self.seq))
        if entry.refusal is not None:
            self._refusal(entry, entry.refusal)
        elif not entry.postings:
            self._without_postings(entry)
        else:
            self.postings += len(entry.postings)
            shortcut = SHORTCUTS.get(entry.kind)
            if shortcut is None or not shortcut(self, entry):
                self._book_in_parts(entry)
                self.note_debts(entry)
            if self.debts:
                self.check_debts(entry)

    def _book_in_parts(self, entry: EntryRead) -> None:
        """Apply an entry that no shortcut accepts until its lines are known, or at all; check it part by part."""
        if _is_too_large(entry):
            self._note("balance_too_large", self.seq, "balances", _shown(entry), "less than 10^38 units each")
        if not entry.is_placed():
            found, expected = "a posting of a missing balance", "one of the balances of the entry"
            self._note("entry_unreadable", self.seq, "postings", found, expected)
            return
        if entry.kind not in CHECKS:
            self._note_unknown_kind(entry.kind)
        shortcut = SHORTCUTS.get(entry.kind)
        if self.learn(entry) and shortcut is not None and shortcut(self, entry):
            return
        try:
            self._post(entry)
        except ValueError:  # Python writes no number of more than 4,300 digits
            self._note("entry_unreadable", self.seq, "units", "numbers too long to write", "less than 10^38")

    def _post(self, entry: EntryRead) -> None:
        self.post(entry)
        check = CHECKS.get(entry.kind)
        if check is not None and (expected := check(entry, self)) is not None:
            code = "reversal_wrong" if entry.kind == "reverse" else "request_differs"
            self._note(code, self.seq, "postings", str(entry.full_postings()), expected)

    # --- entries without postings -------------------------------------------------------------------------

    def _refusal(self, entry: EntryRead, refusal: dict[str, Any]) -> None:
        self.refusals += 1
        if entry.postings or entry.balances or entry.holds:
            self._note("refusal_malformed", self.seq, "postings", "a refusal with postings", "none")
        if entry.kind not in CHECKS and entry.kind not in WITHOUT_POSTINGS:
            self._note_unknown_kind(entry.kind)
        formed = (
            isinstance(refusal.get("code"), str)
            and refusal["code"] in _KEPT_CODES
            and isinstance(refusal.get("detail"), str)
            and isinstance(refusal.get("details"), dict)
        )
        if not formed:
            self._note("refusal_malformed", self.seq, "refusal", refusal, "code, detail and details of a kept refusal")

    def _without_postings(self, entry: EntryRead) -> None:
        if entry.balances or entry.holds:
            found, expected = "balances or holds", "none without postings"
            self._note("balance_after_differs", self.seq, "balances", found, expected)
        match entry.kind:
            case "list_coin":
                self._list_coin(entry.request.coin, entry.request.scale)
            case "register_customer":
                self._register(entry.request.customer)
            case "open_house_account":
                self._open_house_account(entry.request.name, entry.request.may_be_negative)
            case "begin_epoch":
                self._begin_epoch(entry)
            case "reverse":
                if (expected_postings := CHECKS["reverse"](entry, self)) is not None:
                    self._note("reversal_wrong", self.seq, "postings", "none", expected_postings)
            case kind if kind in CHECKS:
                self._note("request_differs", self.seq, "postings", "none", f"those of a {kind}")
            case kind:
                self._note_unknown_kind(kind)

    def _list_coin(self, coin: str | None, scale: int | None) -> None:
        if coin is None or scale is None or not 0 <= scale <= MAX_SCALE or coin in self.coins:
            found, expected = f"{coin} with scale {scale}", f"a coin, once, scale 0-{MAX_SCALE}"
            self._note("coin_listed_wrong", self.seq, "request", found, expected)
        if coin is not None and scale is not None:
            self.coins.setdefault(coin, (scale, self.seq))

    def _register(self, customer: str | None) -> None:
        if customer is None or customer in self.customers:
            self._note("customer_registered_wrong", self.seq, "request", customer, "a customer, once")
        else:
            self.customers[customer] = self.seq

    def _open_house_account(self, name: str | None, may_be_negative: bool | None) -> None:
        opened = house_name(name or "")
        if not _is_house_name(name) or may_be_negative is None or opened in {*_FIRST, *self.customers}:
            self._note("house_account_opened_wrong", self.seq, "request", name, "a house account, once")
            return
        self.customers[opened] = self.seq
        if may_be_negative:
            self.overdrafts.add(opened)

    def _begin_epoch(self, entry: EntryRead) -> None:
        """Check that a new epoch is above those before, and lists them."""
        asked, before = entry.request, self.epochs
        epoch = asked.epoch if type(asked.epoch) is int else 0
        expected = [list(start) for start in before.later]
        is_named = entry.key == epoch_key(epoch) and isinstance(asked.random_id, str) and asked.random_id
        if not is_named or asked.earlier != expected or not before.current < epoch < EPOCH_LIMIT:
            found = f"epoch {asked.epoch!r} after {asked.earlier!r}"
            self._note("epoch_wrong", self.seq, "request", found, f"an epoch above {before.current} after {expected}")
        if epoch > before.current:
            self.epochs = before.begun(epoch, self.seq)

    def _note_unknown_kind(self, kind: str) -> None:
        self._note("kind_unknown", self.seq, "kind", kind, f"one of {', '.join(CHECKS)}")

    # --- what the checks of requests ask --------------------------------------------------------------------

    def earlier(self, seq: int) -> EntryRead | None:
        """Return an entry before the current one, or None if it cannot be read."""
        body = self._entry_at(seq) if 0 < seq < self.seq else None
        return None if body is None else decoded(body)

    def reverse(self, seq: int) -> None:
        """Remember that the current entry reverses the entry *seq*."""
        if seq in self.reversals:
            self._note("reversed_twice", self.seq, f"entry {seq}", f"reversed by {self.reversals[seq]} too", "once")
        self.reversals.setdefault(seq, self.seq)


def _is_house_name(name: str | None) -> bool:
    try:
        check_house_name(name)
    except InvalidRequest:
        return False
    return True


def _is_wrong_actor(actor: str, kind: str) -> bool:
    """Say whether an entry of this *kind* cannot name this *actor*."""
    return (actor == LEDGER) != (kind in _OWN_KINDS) or (actor != LIBRARY and not ACTOR.fullmatch(actor))


def _is_too_large(entry: EntryRead) -> bool:
    """Say whether a balance after *entry* has 10^38 units or more, or as many below zero."""
    return any(not -UNITS_LIMIT < available + freeze < UNITS_LIMIT for _, _, available, freeze in entry.balances)


def _shown(entry: EntryRead) -> str:
    try:
        return str(entry.balances)
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "numbers too long to write"


def _kept_codes(kind: type[Kept] = Kept) -> frozenset[str]:
    return frozenset({kind.code}).union(*(_kept_codes(below) for below in kind.__subclasses__()))


#: Refusals that were kept until they left the key unused; journals still have them.
_KEPT_ONCE: Final = (BalanceTooLarge, HouseShort, UnknownCoin, UnknownCustomer, UnknownEntry, UnknownHold)
_KEPT_CODES: Final = _kept_codes() - {Kept.code} | {kind.code for kind in _KEPT_ONCE}
