"""The audit over files whose bytes were changed at random: it says so, or nothing that anybody reads has changed."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spotledger.audit.embedded import audit_file
from spotledger.domain.accounts import ACCOUNT_IDS, Account
from spotledger.ledger.ledger import Ledger
from support_audit import audited, every_kind, make
from support_books import check_books
from support_core import START_MS, Clock, open_small

#: So many times a file is changed; the seeds are fixed, so that a failure can be seen again.
FLIPS = 40
PAGE = 4096
#: An audit of so small a ledger takes a tenth of a second.
LIMIT_SECONDS = 20.0


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one closed ledger of every kind of entry, with some sealed segments."""
    return make(tmp_path_factory.mktemp("healthy") / "ledger", segment_entries=16)


def _everything(folder: Path) -> str:
    """Return all that a ledger answers, as text."""
    with open_small(folder) as ledger:
        return repr(list(_answers(ledger)))


def _answers(ledger: Ledger) -> Iterator[Any]:
    yield ledger.head
    yield ledger.coins
    yield ledger.trial_balance()
    yield ledger.old_holds(START_MS + 1_000_000)
    entries = ledger.entries(0, 1000)
    yield entries
    yield [ledger.entry_of_key(entry.key) for entry in entries]
    yield [ledger.reversal_of(entry.seq) for entry in entries]
    for customer in ledger.customers():
        yield customer
        for kind in ACCOUNT_IDS:
            account = Account(customer, kind)
            yield [ledger.balances(account, at_seq=seq) for seq in (None, *range(1, ledger.head.seq, 7))]
        yield ledger.holds(customer)
        yield ledger.statement(customer)


@pytest.mark.parametrize("name", ["journal.db", "books.db", "keys.db", "noted-head"])
def test_audit_of_a_closed_ledger_with_a_flipped_bit_says_so_or_nothing_is_read_of_it(
    healthy: Path, tmp_path: Path, name: str
) -> None:
    """One bit anywhere in any file: the audit calls it damage, or the ledger answers as its undamaged twin does."""
    chance = random.Random(f"one bit of {name}")
    size = (healthy / name).stat().st_size
    # The header and the beginning of each page are where a bit does most; the rest falls anywhere.
    places = [chance.randrange(100) for _ in range(FLIPS // 4)]
    places += [chance.randrange(size // PAGE) * PAGE + chance.randrange(12) for _ in range(FLIPS // 4)]
    places += [chance.randrange(size) for _ in range(FLIPS // 2)]
    twin = _everything(shutil.copytree(healthy, tmp_path / "twin"))
    whole = audited(healthy)
    clean = 0
    for number, place in enumerate(places):
        folder = shutil.copytree(healthy, tmp_path / str(number))
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1 << chance.randrange(8)
        (folder / name).write_bytes(content)
        report = audited(folder)
        assert report.seconds < LIMIT_SECONDS
        assert report.verdict in ("clean", "damaged"), (place, report.unexamined)
        if report.verdict == "damaged":
            assert report.findings
            assert report.advice
            assert name == "journal.db" or (report.entries, report.hash) == (whole.entries, whole.hash)
        else:
            clean += 1
            assert _everything(folder) == twin, place
            check_books(folder)
        shutil.rmtree(folder)
    assert clean < FLIPS // 4, "most bits are in use"


def _flip(chance: random.Random, content: bytearray) -> None:
    for _ in range(chance.choice((1, 3, 20))):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)


def _blank(chance: random.Random, content: bytearray) -> None:
    place = chance.randrange(len(content))
    end = min(len(content), place + chance.choice((1, 16, 512, PAGE)))
    content[place:end] = bytes(end - place)


def _cut(chance: random.Random, content: bytearray) -> None:
    del content[chance.randrange(len(content)) :]


def _grow(chance: random.Random, content: bytearray) -> None:
    content.extend(chance.randbytes(chance.choice((1, 100, PAGE, 10_000))))


def _copy_page(chance: random.Random, content: bytearray) -> None:
    pages = max(1, len(content) // PAGE)
    source, target = chance.randrange(pages) * PAGE, chance.randrange(pages) * PAGE
    content[target : target + PAGE] = content[source : source + PAGE]


WAYS: tuple[Callable[[random.Random, bytearray], None], ...] = (_flip, _blank, _cut, _grow, _copy_page)


def test_audit_of_what_a_killed_process_left_and_somebody_changed_never_fails(tmp_path: Path) -> None:
    """Files and logs that were flipped, blanked, cut, grown or mixed up: a verdict each time, quickly, and no error."""
    clock = Clock()
    left = tmp_path / "left"
    with open_small(tmp_path / "live", clock, segment_entries=16) as ledger:
        every_kind(ledger, clock)
        every_kind(ledger, clock, "again:")
        shutil.copytree(tmp_path / "live", left)
    assert audited(left).verdict == "clean"
    names = sorted(file.name for file in left.iterdir() if file.stat().st_size)
    chance = random.Random("what was left")
    verdicts = set()
    for number in range(FLIPS):
        folder = shutil.copytree(left, tmp_path / str(number))
        for name in chance.sample(names, chance.choice((1, 1, 2))):
            content = bytearray((folder / name).read_bytes())
            chance.choice(WAYS)(chance, content)
            (folder / name).write_bytes(content)
        began = time.monotonic()
        report = audit_file(folder / "journal.db")
        assert time.monotonic() - began < LIMIT_SECONDS
        assert report.verdict in ("clean", "damaged", "incomplete")
        verdicts.add(report.verdict)
        shutil.rmtree(folder)
    assert "damaged" in verdicts
