"""
Rows of CSV as RFC 4180 has them, harmless in a spreadsheet.

A spreadsheet takes a cell that begins with certain characters for a formula, whoever wrote it. Such a text gets an
apostrophe in front. Numbers are written as they are, with their sign.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

#: Encoded in front of the first row, it tells Excel that the file is UTF-8.
BYTE_ORDER_MARK: Final = "\ufeff".encode()
#: What the first character of a formula can be, in their wide forms too.
_FORMULA: Final = tuple("=+-@\t\r\n＝＋－＠")
_QUOTED: Final = (",", '"', "\r", "\n")


def text_cell(text: str) -> str:
    """Return a cell with *text* in it, whatever that is."""
    if text.startswith(_FORMULA):
        text = f"'{text}"
    if any(sign in text for sign in _QUOTED):
        return '"{}"'.format(text.replace('"', '""'))
    return text


def row(cells: Sequence[str]) -> str:
    """Return one row of *cells*: numbers as they are, and texts from :func:`text_cell`."""
    return ",".join(cells) + "\r\n"
