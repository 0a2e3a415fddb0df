"""
A table in a CSV file, as spreadsheets, database dumps and other systems write it: records by line and column.

The separator is found in the first line: a comma, a semicolon or a tab, or what a line ``sep=;`` before it says. Names
of columns are taken without regard to case, and blanks around names and fields are left out. Lines with nothing in
them are left out too. The text is UTF-8; anything else is refused by its name.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple, TextIO

#: Separators that are looked for; an Excel in another language writes semicolons.
SEPARATORS: Final = ",;\t"
#: The most characters of the first line, which names the columns.
HEADER_CHARACTERS: Final = 65_536

_SEPARATOR_LINE: Final = re.compile(r'\A"?sep=(.)"?\s*\Z', re.IGNORECASE)
#: The first bytes of files in other encodings; the longer ones first.
_BYTE_ORDER_MARKS: Final = (
    (b"\xff\xfe\0\0", "UTF-32"),
    (b"\0\0\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_SAVE: Final = 'save it as UTF-8, which spreadsheets call "CSV UTF-8"'
#: What `surrogateescape` makes of bytes that are not UTF-8.
_NOT_UTF_8: Final = re.compile("[\udc80-\udcff]")
#: Blanks around a field; others, such as no-break spaces, are part of it.
_BLANKS: Final = " \t"


class BadLine(Exception):
    """A line cannot be read."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line
        self.reason = reason


class NotATable(BadLine):
    """The file is no such table, so what follows the line means nothing."""


class Record(NamedTuple):
    """One record, by the number of the line that it begins in, from 1."""

    line: int
    fields: list[str]


def records_of(file: Path) -> Iterator[Record | BadLine]:
    """
    Give the records of *file* in order, the names of its columns first, in lower case.

    A line that cannot be read is given as the error.

    Raises:
        NotATable: It is in another encoding, or holds what no text does.
        OSError: The system refuses.
    """
    with file.open("rb") as opened:
        _check_encoding(opened.read(4))
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield from _records(text)


def _check_encoding(start: bytes) -> None:
    for mark, name in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            raise NotATable(1, f"the file is {name}; {_SAVE}")
    # Without a mark: a character of ASCII has a zero byte before or behind it.
    if len(start) == 4 and start[::2].count(0) + start[1::2].count(0) == 2 and start[::2].count(0) in (0, 2):
        raise NotATable(1, f"the file seems to be UTF-16; {_SAVE}")


def _records(text: TextIO) -> Iterator[Record | BadLine]:
    header, before, separator = _header(text)
    if not header:
        return
    reader = csv.reader(chain([header], text), delimiter=separator, skipinitialspace=True, strict=True)
    names: list[str] | None = None
    while True:
        line = before + reader.line_num + 1
        try:
            fields = [_checked(field, line).strip(_BLANKS) for field in next(reader)]
        except StopIteration:
            return
        except csv.Error as problem:
            yield BadLine(line, f"it is not CSV: {problem}")
            continue
        if names is None:
            names = [field.lower() for field in fields]
            yield Record(line, names)
        elif any(fields):
            yield Record(line, fields)


def _header(text: TextIO) -> tuple[str, int, str]:
    """Return the line that names the columns, how many lines there are before it, and the separator."""
    stated = None
    before = 0
    while (line := text.readline(HEADER_CHARACTERS)) and (not line.strip() or stated is None):
        said = _SEPARATOR_LINE.match(line)
        if said is not None:
            stated = said[1]
        elif line.strip():
            break
        before += 1
    if len(line) == HEADER_CHARACTERS:
        raise NotATable(before + 1, f"the first line has {HEADER_CHARACTERS} characters or more")
    return line, before, stated or max(SEPARATORS, key=line.count)


def _checked(field: str, line: int) -> str:
    found = _NOT_UTF_8.search(field)
    if found is not None:
        line += field.count("\n", 0, found.start())
        raise NotATable(line, f"it has the byte 0x{ord(found[0]) - 0xDC00:02x}, which is not UTF-8; {_SAVE}")
    if "\0" in field:
        raise NotATable(line, "it has a zero byte, which no text has; export the file again")
    return field
