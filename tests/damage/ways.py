"""Ways to damage the files of a ledger; each takes bytes and chance, and says in words what it did."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from damage.ledgers import Files, Subject

PAGE = 4096
#: Pages whose content is a part of a b-tree that leads to other pages.
INTERIOR = (2, 5)
#: Where SQLite's header keeps how many bytes of each page the checksum has; any other number switches it off.
RESERVED_BYTE = 20
WAL_HEADER, FRAME = 32, 24 + PAGE
DATABASES = ("journal.db", "books.db", "keys.db")


class Damaged(NamedTuple):
    """The files of a ledger after something happened to them, and what that was."""

    files: Files
    what: str


Way = Callable[[random.Random, Subject], Damaged]


def _changed(subject: Subject, name: str, content: bytes, what: str) -> Damaged:
    return Damaged({**subject.files, name: content}, f"{name}: {what}")


def _any_file(chance: random.Random, subject: Subject, *names: str) -> str:
    there = [name for name in sorted(subject.files) if subject.files[name] and (not names or name in names)]
    return chance.choice(there)


# --- bits -----------------------------------------------------------------------------------------------


def flip_anywhere(chance: random.Random, subject: Subject) -> Damaged:
    """Flip one bit anywhere in any file."""
    name = _any_file(chance, subject)
    return _flip(chance, subject, name, [chance.randrange(len(subject.files[name]))])


def flip_header(chance: random.Random, subject: Subject) -> Damaged:
    """Flip one bit in the first 100 bytes of a file, or of the second slot of the note."""
    name = _any_file(chance, subject)
    place = chance.randrange(min(100, len(subject.files[name])))
    return _flip(chance, subject, name, [place + (PAGE * chance.randrange(2) if name == "noted-head" else 0)])


def flip_page_header(chance: random.Random, subject: Subject) -> Damaged:
    """Flip one bit where a page says what it is and where its cells are, or of its checksum."""
    name = _any_file(chance, subject, *DATABASES)
    pages = len(subject.files[name]) // PAGE
    place = chance.choice((chance.randrange(12), chance.randrange(64), PAGE - 8 + chance.randrange(8)))
    return _flip(chance, subject, name, [chance.randrange(pages) * PAGE + place])


def flip_interior(chance: random.Random, subject: Subject) -> Damaged:
    """Flip one bit of a page that leads to other pages."""
    name = _any_file(chance, subject, *DATABASES)
    content = subject.files[name]
    pages = [place for place in range(0, len(content), PAGE) if content[place + 100 * (not place)] in INTERIOR]
    if not pages:
        return flip_page_header(chance, subject)
    return _flip(chance, subject, name, [chance.choice(pages) + chance.randrange(PAGE)])


def flip_several(chance: random.Random, subject: Subject) -> Damaged:
    """Flip a few bits near each other, or anywhere in a file."""
    name = _any_file(chance, subject)
    size = len(subject.files[name])
    count, first = chance.choice((2, 3, 20)), chance.randrange(size)
    near = [min(size - 1, first + chance.randrange(64)) for _ in range(count)]
    return _flip(chance, subject, name, chance.choice((near, [chance.randrange(size) for _ in range(count)])))


def flip_log(chance: random.Random, subject: Subject) -> Damaged:
    """Flip one bit of a write-ahead log: anywhere, or where a frame says what it is."""
    logs = [name for name in subject.files if name.endswith("-wal") and subject.files[name]]
    if not logs:
        return flip_anywhere(chance, subject)
    name = chance.choice(sorted(logs))
    content = subject.files[name]
    frames = (len(content) - WAL_HEADER) // FRAME
    head = WAL_HEADER + chance.randrange(max(1, frames)) * FRAME + chance.randrange(24)
    place = chance.choice((head, chance.randrange(len(content)), chance.randrange(WAL_HEADER)))
    return _flip(chance, subject, name, [min(place, len(content) - 1)])


def _flip(chance: random.Random, subject: Subject, name: str, places: list[int]) -> Damaged:
    content = bytearray(subject.files[name])
    for place in places:
        content[place] ^= 1 << chance.randrange(8)
    return _changed(subject, name, bytes(content), f"bits flipped at {places[:4]}")


def switch_off_checksums(chance: random.Random, subject: Subject) -> Damaged:
    """Change the byte that says that pages have checksums, and flip a bit elsewhere."""
    name = _any_file(chance, subject, *DATABASES)
    content = bytearray(subject.files[name])
    content[RESERVED_BYTE] = chance.choice((0, 4, 12, 8 ^ 1 << chance.randrange(8)))
    place = chance.randrange(100, len(content))
    content[place] ^= 1 << chance.randrange(8)
    return _changed(subject, name, bytes(content), f"checksums switched off, and a bit flipped at {place}")


# --- pages ------------------------------------------------------------------------------------------------


def copy_page(chance: random.Random, subject: Subject) -> Damaged:
    """Write a page over another one."""
    name = _any_file(chance, subject, *DATABASES)
    content, (source, target) = bytearray(subject.files[name]), _two_pages(chance, subject.files[name])
    content[target : target + PAGE] = content[source : source + PAGE]
    return _changed(subject, name, bytes(content), f"page at {source} copied to {target}")


def swap_pages(chance: random.Random, subject: Subject) -> Damaged:
    """Swap two pages."""
    name = _any_file(chance, subject, *DATABASES)
    content, (one, other) = bytearray(subject.files[name]), _two_pages(chance, subject.files[name])
    content[one : one + PAGE], content[other : other + PAGE] = content[other : other + PAGE], content[one : one + PAGE]
    return _changed(subject, name, bytes(content), f"pages at {one} and {other} swapped")


def _two_pages(chance: random.Random, content: bytes) -> tuple[int, int]:
    one, other = chance.sample(range(len(content) // PAGE), 2)
    return one * PAGE, other * PAGE


def set_back_pages(chance: random.Random, subject: Subject) -> Damaged:
    """Set some pages back to what they were: writes that the disk acknowledged and lost."""
    name = _any_file(chance, subject, *DATABASES)
    content, early = bytearray(subject.files[name]), subject.early[name]
    pages = range(0, min(len(content), len(early)), PAGE)
    changed = [place for place in pages if content[place : place + PAGE] != early[place : place + PAGE]]
    if not changed:
        return copy_page(chance, subject)
    for place in chance.sample(changed, min(len(changed), chance.choice((1, 1, 2, 5)))):
        content[place : place + PAGE] = early[place : place + PAGE]
    return _changed(subject, name, bytes(content), "pages set back")


def blank(chance: random.Random, subject: Subject) -> Damaged:
    """Write zeros over a sector, a page, or a few bytes."""
    name = _any_file(chance, subject)
    content = bytearray(subject.files[name])
    size = chance.choice((1, 16, 512, PAGE))
    place = chance.randrange(len(content)) // size * size
    end = min(len(content), place + size)
    content[place:end] = bytes(end - place)
    return _changed(subject, name, bytes(content), f"{size} bytes of zeros at {place}")


def garble(chance: random.Random, subject: Subject) -> Damaged:
    """Write noise over a sector or a page."""
    name = _any_file(chance, subject)
    content = bytearray(subject.files[name])
    size = chance.choice((64, 512, PAGE))
    place = chance.randrange(len(content)) // size * size
    end = min(len(content), place + size)
    content[place:end] = chance.randbytes(end - place)
    return _changed(subject, name, bytes(content), f"{size} bytes of noise at {place}")


# --- files ------------------------------------------------------------------------------------------------


def cut(chance: random.Random, subject: Subject) -> Damaged:
    """Cut a file off, at a page, at the end of a frame, or anywhere."""
    name = _any_file(chance, subject)
    size = len(subject.files[name])
    step = FRAME if name.endswith("-wal") else PAGE
    at_step = chance.randrange(size // step + 1) * step + (WAL_HEADER if name.endswith("-wal") else 0)
    end = chance.choice((min(size - 1, at_step), chance.randrange(size), size - 1))
    return _changed(subject, name, subject.files[name][:end], f"cut to {end} of {size} bytes")


def grow(chance: random.Random, subject: Subject) -> Damaged:
    """Append bytes to a file."""
    name = _any_file(chance, subject)
    more = chance.choice((bytes(PAGE), chance.randbytes(chance.choice((1, 100, PAGE, 3 * PAGE)))))
    return _changed(subject, name, subject.files[name] + more, f"{len(more)} bytes appended")


def delete(chance: random.Random, subject: Subject) -> Damaged:
    """Remove a file."""
    name = _any_file(chance, subject)
    files = {other: content for other, content in subject.files.items() if other != name}
    return Damaged(files, f"{name}: removed")


def set_back_file(chance: random.Random, subject: Subject) -> Damaged:
    """Set whole files back, with or without their logs."""
    names = chance.choice((["journal.db"], ["books.db"], ["keys.db"], ["noted-head"], ["journal.db", "books.db"]))
    keeps_logs = chance.random() < 0.5
    files = {**subject.files, **{name: subject.early[name] for name in names}}
    if not keeps_logs:
        files = {name: files[name] for name in files if name.removesuffix("-wal") == name or name[:-4] not in names}
    return Damaged(files, f"{', '.join(names)}: set back{'' if keeps_logs else ', without logs'}")


def mix_up(chance: random.Random, subject: Subject) -> Damaged:
    """Put a file of another ledger in the place of this one's, and leave no log of the one before."""
    name = chance.choice((*DATABASES, "noted-head"))
    files = {other: content for other, content in subject.files.items() if other != f"{name}-wal"}
    return Damaged({**files, name: subject.other[name]}, f"{name}: of another ledger")


#: Every way, and how often it is taken: flipped bits most of all.
WAYS: dict[Way, int] = {
    flip_anywhere: 20,
    flip_header: 8,
    flip_page_header: 15,
    flip_interior: 15,
    flip_several: 5,
    flip_log: 10,
    switch_off_checksums: 3,
    copy_page: 5,
    swap_pages: 5,
    set_back_pages: 6,
    blank: 3,
    garble: 2,
    cut: 4,
    grow: 2,
    delete: 2,
    set_back_file: 3,
    mix_up: 3,
}


def damage(chance: random.Random, subject: Subject) -> tuple[str, Damaged]:
    """Damage *subject* in one way; return the name of the way, and what came of it."""
    way = chance.choices(list(WAYS), list(WAYS.values()))[0]
    return way.__name__, way(chance, subject)
